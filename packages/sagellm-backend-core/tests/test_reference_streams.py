"""Reference provider: streams are asynchronous, ordered, and end with who made them."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.reference.provider import create_reference_backend

WAIT = 20.0


@pytest.fixture
def backend():
    with create_reference_backend() as made:
        yield made


@pytest.fixture
def gate():
    """Work that does not end before the test says so."""
    opened = threading.Event()
    yield opened
    opened.set()


def hold(gate):
    return lambda: gate.wait(WAIT) or pytest.fail("the gate was never opened")


def await_true(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.001)


def stream_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("stream of")}


def ones(backend, value=1.0):
    return backend.from_numpy(np.full((4, 4), value, np.float32))


def bad_ids(backend):
    """A call that only the worker can refuse: its ids are outside of the table."""
    table = backend.from_numpy(np.zeros((3, 2), np.float32))
    return backend.get_kernel("embedding")(backend.from_numpy(np.array([7])), table)


class TestAsynchrony:
    def test_kernels_return_before_they_run(self, backend, gate):
        stream = backend.create_stream()
        stream.submit(hold(gate))
        with stream:
            product = backend.get_kernel("matmul")(ones(backend), ones(backend))
        assert not stream.query()
        assert np.isnan(product.raw()).all()
        gate.set()
        assert (backend.to_numpy(product) == 4).all()
        assert stream.query()

    def test_a_slow_stream_blocks_neither_the_host_nor_others(self, backend, gate):
        slow = backend.create_stream()
        slow.submit(hold(gate))
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
        inner.submit(hold(gate))
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
        backend.current_stream("reference:0").submit(hold(gate))
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
        backend.current_stream("reference:0").submit(hold(gate))
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
        first.submit(hold(gate))
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
        first.submit(hold(gate))
        with first:
            product = backend.get_kernel("matmul")(ones(backend), ones(backend))
        with second:
            again = backend.get_kernel("matmul")(product, ones(backend))
        assert np.isnan(backend.to_numpy(again)).all()

    def test_a_marker_does_not_cover_later_work(self, backend, gate):
        stream, event = backend.create_stream(), backend.create_event()
        stream.record_event(event)
        stream.submit(hold(gate))
        event.synchronize()
        assert event.query()
        assert not stream.query()

    def test_recording_again_replaces_the_marker(self, backend, gate):
        stream, event = backend.create_stream(), backend.create_event()
        stream.record_event(event)
        event.synchronize()
        stream.submit(hold(gate))
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


class TestFailures:
    def waits(self, backend, stream, event, result):
        return {
            "stream": stream.synchronize,
            "event": event.synchronize,
            "provider": backend.synchronize,
            "to_numpy": lambda: backend.to_numpy(result),
        }

    @pytest.mark.parametrize("wait", ["stream", "event", "provider", "to_numpy"])
    def test_surface_once(self, backend, wait):
        stream, event = backend.create_stream(), backend.create_event()
        with stream:
            result = bad_ids(backend)
        stream.record_event(event)
        waits = self.waits(backend, stream, event, result)
        with pytest.raises(InvalidArgumentError, match="ids holds 7"):
            waits[wait]()
        for again in waits.values():
            again()

    def test_poison_nothing(self, backend):
        bad_ids(backend)
        product = backend.get_kernel("matmul")(ones(backend), ones(backend))
        with pytest.raises(InvalidArgumentError):
            backend.synchronize()
        assert (backend.to_numpy(product) == 4).all()

    def test_of_what_led_to_an_array_surface_with_it(self, backend):
        rows = bad_ids(backend)
        result = backend.get_kernel("linear")(rows, backend.from_numpy(np.ones((5, 2), np.float32)))
        with pytest.raises(InvalidArgumentError, match="ids holds 7"):
            backend.to_numpy(result)

    def test_of_other_streams_stay_theirs(self, backend):
        failing, fine = backend.create_stream(), backend.create_stream()
        with failing:
            bad_ids(backend)
        fine.submit(lambda: None)
        fine.synchronize()
        with pytest.raises(InvalidArgumentError):
            failing.synchronize()

    def test_later_work_keeps_its_failure_for_a_later_wait(self, backend, gate):
        stream, event = backend.create_stream(), backend.create_event()
        stream.record_event(event)
        with stream:
            bad_ids(backend)
        await_true(stream.query)
        event.synchronize()
        with pytest.raises(InvalidArgumentError):
            stream.synchronize()

    def test_further_ones_are_logged(self, backend, caplog):
        bad_ids(backend)
        bad_ids(backend)
        with caplog.at_level(logging.ERROR), pytest.raises(InvalidArgumentError):
            backend.synchronize()
        assert [record for record in caplog.records if "ids holds 7" in record.getMessage()]
        backend.synchronize()

    def test_any_exception_becomes_one_of_the_family(self, backend):
        def work():
            raise KeyError("lost")

        stream = backend.create_stream()
        stream.submit(work)
        with pytest.raises(UnavailableError, match="KeyError") as error:
            stream.synchronize()
        assert isinstance(error.value.__cause__, KeyError)

    def test_of_a_collected_stream_are_not_lost(self, backend):
        stream = backend.create_stream()
        with stream:
            bad_ids(backend)
        del stream
        gc.collect()
        with pytest.raises(InvalidArgumentError):
            backend.synchronize()

    def test_arguments_are_refused_at_the_call(self, backend, gate):
        backend.current_stream("reference:0").submit(hold(gate))
        kernel = backend.get_kernel("linear")
        with pytest.raises(InvalidArgumentError, match="weight"):
            kernel(ones(backend), backend.from_numpy(np.zeros((3, 5), np.float32)))
        with pytest.raises(InvalidArgumentError, match="ndarray"):
            kernel(ones(backend), np.zeros((3, 4), np.float32))
        there = backend.from_numpy(np.zeros((3, 4), np.float32), location="reference:1")
        with pytest.raises(InvalidArgumentError, match="share a device"):
            kernel(ones(backend), there)


class TestThreads:
    def test_start_with_the_first_work(self):
        before = stream_threads()
        backend = create_reference_backend()
        streams = [backend.create_stream() for _ in range(50)]
        assert stream_threads() == before
        streams[0].submit(lambda: None)
        assert len(stream_threads() - before) == 1
        backend.close()
        assert stream_threads() == before

    def test_end_with_their_stream_after_its_work(self, backend, gate):
        before, done = stream_threads(), []
        stream = backend.create_stream()
        stream.submit(hold(gate))
        stream.submit(lambda: done.append(1))
        del stream
        gate.set()
        await_true(lambda: stream_threads() <= before)
        assert done == [1]
        assert not backend._workers.members

    def test_end_with_their_provider(self):
        before = stream_threads()
        backend = create_reference_backend()
        stream = backend.create_stream()
        stream.submit(lambda: None)
        bad_ids(backend)
        del backend, stream
        gc.collect()
        await_true(lambda: stream_threads() <= before)

    def test_close_does_the_work_and_takes_no_more(self, gate):
        backend, done = create_reference_backend(), []
        used, unused = backend.create_stream(), backend.create_stream()
        used.submit(lambda: (time.sleep(0.02), done.append(1)))
        backend.close()
        backend.close()
        assert done == [1]
        for stream in (used, unused):
            with pytest.raises(UnavailableError, match="closed"):
                stream.submit(lambda: None)
            stream.synchronize()

    def test_close_raises_a_failure_and_closes(self):
        before = stream_threads()
        backend = create_reference_backend()
        bad_ids(backend)
        with pytest.raises(InvalidArgumentError):
            backend.close()
        assert backend.closed
        assert stream_threads() == before

    def test_many_threads_share_streams(self, backend):
        streams = [backend.create_stream() for _ in range(4)]
        wrong = []

        def use(seed):
            rng = np.random.default_rng(seed)
            for _ in range(40):
                stream, event = streams[rng.integers(4)], backend.create_event()
                with stream:
                    product = backend.get_kernel("matmul")(ones(backend), ones(backend))
                stream.record_event(event)
                streams[rng.integers(4)].wait_event(event)
                if (backend.to_numpy(product) != 4).any():
                    wrong.append(seed)

        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        backend.synchronize()
        assert not wrong
        assert backend.memory_stats()["allocated_bytes"] == 0

    @pytest.mark.parametrize("ending", ["pass", "import sys; sys.exit(3)", "raise SystemError"])
    def test_the_interpreter_exits_with_work_under_way(self, ending):
        script = f"""
            import threading, time
            from sagellm_backend.reference.provider import create_reference_backend
            backend = create_reference_backend()
            streams = [backend.create_stream() for _ in range(4)]
            for stream in streams:
                for _ in range(100):
                    stream.submit(lambda: time.sleep(1))
            {ending}
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            timeout=60,
            check=False,
            capture_output=True,
            text=True,
        )
        assert run.returncode == {"pass": 0, "raise SystemError": 1}.get(ending, 3), run.stderr
        assert "Fatal" not in run.stderr
