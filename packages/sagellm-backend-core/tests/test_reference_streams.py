"""Reference provider: streams are asynchronous and ordered, and events order them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.reference.provider import create_reference_backend


@pytest.fixture
def backend():
    with create_reference_backend() as made:
        yield made


def ones(backend, value=1.0):
    return backend.from_numpy(np.full((4, 4), value, np.float32))


class TestAsynchrony:
    def test_kernels_return_before_they_run(self, backend, gate):
        stream = backend.create_stream()
        stream.submit(gate.hold)
        with stream:
            product = backend.get_kernel("matmul")(ones(backend), ones(backend))
        assert not stream.query()
        assert np.isnan(product.raw()).all()
        gate.set()
        assert (backend.to_numpy(product) == 4).all()
        assert stream.query()

    def test_a_slow_stream_blocks_neither_the_host_nor_others(self, backend, gate):
        slow = backend.create_stream()
        slow.submit(gate.hold)
        product = backend.get_kernel("matmul")(ones(backend), ones(backend))
        assert (backend.to_numpy(product) == 4).all()
        assert not slow.query()

    def test_work_of_one_stream_is_done_in_order(self, backend):
        stream = backend.create_stream()
        seen = []
        for index in range(200):
            stream.submit(lambda index=index: seen.append(index))
        stream.synchronize()
        assert seen == list(range(200))

    def test_chains_of_kernels(self, backend):
        x, half = ones(backend), ones(backend, 0.25)
        for _ in range(50):
            x = backend.get_kernel("matmul")(x, half)
        assert (backend.to_numpy(x) == 1).all()

    def test_kernels_go_to_the_innermost_entered_stream(self, backend, gate):
        outer, inner = backend.create_stream(), backend.create_stream()
        inner.submit(gate.hold)
        with outer, inner:
            assert backend.current_stream("reference:0") is inner
            assert backend.current_stream("reference:1") is not inner
            backend.get_kernel("matmul")(ones(backend), ones(backend))
        assert outer.query()
        assert not inner.query()

    def test_entering_is_per_thread(self, backend):
        stream, seen = backend.create_stream(), []
        with stream:
            thread = threading.Thread(
                target=lambda: seen.append(backend.current_stream("reference:0"))
            )
            thread.start()
            thread.join()
        assert seen != [stream]

    def test_devices_have_default_streams_of_their_own(self, backend, gate):
        backend.current_stream("reference:0").submit(gate.hold)
        there = backend.from_numpy(np.ones((2, 2), np.float32), location="reference:1")
        product = backend.get_kernel("matmul")(there, there)
        assert product.device == "reference:1"
        assert (backend.to_numpy(product) == 2).all()

    def test_synchronize_waits_for_every_stream(self, backend):
        streams, done = [backend.create_stream() for _ in range(4)], []
        for stream in streams:
            stream.submit(lambda: (time.sleep(0.01), done.append(1)))
        backend.synchronize()
        assert len(done) == 4

    def test_write_back_is_ordered_behind_earlier_readers(self, backend, gate):
        x = ones(backend)
        backend.current_stream("reference:0").submit(gate.hold)
        product = backend.get_kernel("matmul")(x, x)
        values = np.zeros((4, 4), np.float32)
        backend._write_back(x, values)
        values[:] = 9
        gate.set()
        assert (backend.to_numpy(product) == 4).all()
        assert (backend.to_numpy(x) == 0).all()


class TestEvents:
    def test_order_streams(self, backend, gate):
        first, second, event = (
            backend.create_stream(),
            backend.create_stream(),
            backend.create_event(),
        )
        first.submit(gate.hold)
        with first:
            product = backend.get_kernel("matmul")(ones(backend), ones(backend))
        first.record_event(event)
        second.wait_event(event)
        with second:
            again = backend.get_kernel("matmul")(product, ones(backend))
        time.sleep(0.05)
        assert not event.query()
        assert not second.query()
        gate.set()
        assert (backend.to_numpy(again) == 16).all()
        assert event.query()

    def test_without_an_event_the_race_shows(self, backend, gate):
        first, second = backend.create_stream(), backend.create_stream()
        first.submit(gate.hold)
        with first:
            product = backend.get_kernel("matmul")(ones(backend), ones(backend))
        with second:
            again = backend.get_kernel("matmul")(product, ones(backend))
        assert np.isnan(backend.to_numpy(again)).all()

    def test_a_marker_does_not_cover_later_work(self, backend, gate):
        stream, event = backend.create_stream(), backend.create_event()
        stream.record_event(event)
        stream.submit(gate.hold)
        event.synchronize()
        assert event.query()
        assert not stream.query()

    def test_recording_again_replaces_the_marker(self, backend, gate):
        stream, event = backend.create_stream(), backend.create_event()
        stream.record_event(event)
        event.synchronize()
        stream.submit(gate.hold)
        stream.record_event(event)
        assert not event.query()

    def test_waits_in_a_ring_end(self, backend):
        streams = [backend.create_stream() for _ in range(3)]
        events = [backend.create_event() for _ in range(3)]
        for _ in range(30):
            for index, stream in enumerate(streams):
                stream.wait_event(events[index - 1])
                stream.record_event(events[index])
        for stream in streams:
            stream.synchronize()
        assert all(event.query() for event in events)

    def test_an_event_never_recorded_is_done(self, backend):
        stream, event = backend.create_stream(), backend.create_event()
        stream.wait_event(event)
        event.synchronize()
        assert event.query()
        assert stream.query()

    def test_time_is_that_of_the_work(self, backend):
        stream = backend.create_stream()
        start, end = backend.create_event(), backend.create_event()
        began = time.perf_counter()
        stream.record_event(start)
        stream.submit(lambda: time.sleep(0.03))
        stream.record_event(end)
        end.synchronize()
        whole = 1e3 * (time.perf_counter() - began)
        time.sleep(0.1)
        assert 30 <= end.elapsed_ms(start) <= whole
        with pytest.raises(InvalidArgumentError, match="after this one"):
            start.elapsed_ms(end)

    def test_other_providers_are_refused(self, backend):
        with create_reference_backend() as other:
            event = other.create_event()
            with pytest.raises(InvalidArgumentError, match="another provider"):
                backend.create_stream().record_event(event)
