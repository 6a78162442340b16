"""Reference provider: what fails in a worker surfaces once, and workers end with who made them."""

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


@pytest.fixture
def backend():
    with create_reference_backend() as made:
        yield made


def await_true(condition):
    deadline = time.monotonic() + 20.0
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
        backend.current_stream("reference:0").submit(gate.hold)
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
        stream.submit(gate.hold)
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
