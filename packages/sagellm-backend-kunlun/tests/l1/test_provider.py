"""The provider on the simulated device: order by the trace, two devices, and a full one."""

from __future__ import annotations

import threading

import numpy as np
import paddle
import pytest
from kunlun_sim.runtime import sleep, stream_id, traced
from processes import output_of

from sagellm_backend import DType, KVLayout, get_provider
from sagellm_backend.errors import CapabilityError

BUSY_MS = 200
LAYOUT = KVLayout(2, 2, 8, 4, DType.FP16, order="HND")


@pytest.fixture
def backend():
    with get_provider("kunlun") as made:
        yield made


def filled(backend, pool, start):
    """All blocks of a pool, taken and written; what is in each cache."""
    rng = np.random.default_rng(start)
    pool.alloc(pool.num_free)
    shape = (pool.num_blocks, 4, 2, 8)
    held = []
    for layer in range(2):
        for cache in (pool.key_cache(layer), pool.value_cache(layer)):
            values = rng.standard_normal(shape).astype(np.float16)
            cache[...] = paddle.to_tensor(values, place=cache.place)
            held.append(values)
    backend.synchronize()
    return held


def contents(backend, pool):
    caches = [cache(layer) for layer in range(2) for cache in (pool.key_cache, pool.value_cache)]
    return [backend.to_numpy(cache) for cache in caches]


def test_it_says_where_it_was_proven(backend):
    descriptor = backend.capability()
    assert {device.facts["level"] for device in descriptor.devices} == {"L1"}
    assert all("L0 only" in descriptor.devices[0].facts[name] for name in ("fp16", "bf16"))
    assert set(descriptor.operations.values()) == {(DType.FP32,)}


class TestOrder:
    def test_what_is_done_inside_a_stream_is_its_work(self, backend):
        stream = backend.create_stream()
        slots = backend.from_numpy(np.array([1], np.int64))
        new = backend.from_numpy(np.ones((1, 2, 8), np.float32))
        caches = [backend.from_numpy(np.zeros((2, 4, 2, 8), np.float32)) for _ in range(2)]
        kv_write = backend.get_kernel("kv_write")
        with traced() as calls, stream:
            kv_write(new, new, *caches, slots)
        mine = f"stream {stream_id(stream.native)}"
        assert calls.count(f"submit index_put {mine}") == 2
        waits = {call for call in calls if call.startswith("synchronize_stream")}
        assert waits == {f"synchronize_stream {mine}"}

    def test_a_stream_that_is_entered_comes_after_what_was_before(self, backend):
        """Its memory may be memory that the other still reads."""
        default = paddle.device.current_stream("kunlun_sim:0")
        stream, source = backend.create_stream(), backend.from_numpy(np.ones(4, np.float32))
        target = backend.from_numpy(np.zeros(4, np.float32))
        scale = backend.get_kernel("silu_and_mul")
        sleep(default, BUSY_MS)
        with backend.launcher.on(0):
            target[:] = source
        with traced() as calls, stream:
            pair = target.reshape((1, 4))
            found = scale(pair)
        assert (np.abs(backend.to_numpy(found) - 0.7310586) < 1e-6).all()
        assert any(call.startswith("submit wait_event") for call in calls)

    def test_reading_waits_for_every_stream(self, backend):
        stream = backend.create_stream()
        source = backend.from_numpy(np.ones(4, np.float32))
        target = backend.from_numpy(np.zeros(4, np.float32))
        with stream, backend.launcher.on(0):
            sleep(stream.native, BUSY_MS)
            target[:] = source
        assert (backend.to_numpy(target) == 1).all()

    def test_an_event_holds_the_other_stream_back(self, backend):
        first, second = backend.create_stream(), backend.create_stream()
        event = backend.create_event()
        sleep(first.native, BUSY_MS)
        first.record_event(event)
        assert not event.query()
        with traced() as calls:
            second.wait_event(event)
            second.synchronize()
        assert event.query()
        assert f"done wait_event stream {stream_id(second.native)}" in calls

    def test_what_an_xpu_cannot_say_is_refused(self, backend):
        stream, event = backend.create_stream(), backend.create_event()
        with pytest.raises(CapabilityError, match="stream_query"):
            stream.query()
        stream.record_event(event)
        with pytest.raises(CapabilityError, match="event_timing"):
            event.elapsed_ms(event)

    def test_threads_do_not_take_one_another_for_their_streams(self, backend):
        wanted, got = [], []

        def work():
            stream = backend.create_stream()
            source = backend.from_numpy(np.full(64, len(wanted), np.float32))
            target = backend.from_numpy(np.zeros(64, np.float32))
            wanted.append(stream)
            with stream:
                for _ in range(20):
                    with backend.launcher.on(0):
                        target[:] = source
                        got.append(
                            stream_id(paddle.device.current_stream("kunlun_sim:0"))
                            == stream_id(stream.native)
                        )

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 40
        assert all(got)


class TestTwoDevices:
    def test_each_has_its_own_arrays(self):
        for index in (0, 1):
            with get_provider("kunlun", {"device": index}) as backend:
                array = backend.from_numpy(np.arange(4, dtype=np.float32))
                assert str(array.place) == f"Place(kunlun_sim:{index})"
                assert (backend.to_numpy(array) == np.arange(4)).all()

    def test_blocks_go_from_one_to_the_other_once_they_are_written(self, backend):
        with (
            backend.kv_pool(LAYOUT, 6) as source,
            backend.kv_pool(LAYOUT, 6, location="kunlun_sim:1") as target,
        ):
            before, old = filled(backend, source, 1), filled(backend, target, 2)
            with backend.launcher.on(0):
                sleep(paddle.device.current_stream("kunlun_sim:0"), BUSY_MS)
                source.key_cache(0)[3] = paddle.to_tensor(np.full((4, 2, 8), 9, np.float16))
            before[0][3] = 9
            plan = backend.kv_copy_plan(source, target)
            with traced() as calls:
                plan.copy([3, 4, 0], [0, 1, 5])
            after = contents(backend, target)
        for new, held, kept in zip(after, before, old, strict=True):
            assert (new[[0, 1, 5]] == held[[3, 4, 0]]).all()
            assert (new[[2, 3, 4]] == kept[[2, 3, 4]]).all()
        waited = next(i for i, call in enumerate(calls) if "synchronize_device device 0" in call)
        copied = next(i for i, call in enumerate(calls) if "copy_p2p" in call)
        assert waited < copied

    @pytest.mark.parametrize("swap", ["out", "in"])
    def test_blocks_go_to_the_host_and_back_in_their_direction(self, backend, swap):
        with (
            backend.kv_pool(LAYOUT, 6) as here,
            backend.kv_pool(LAYOUT, 6, location="host") as there,
        ):
            ends = (here, there) if swap == "out" else (there, here)
            before = filled(backend, ends[0], 3)
            ends[1].alloc(6)
            plan = backend.kv_copy_plan(*ends)
            with traced() as calls:
                plan.copy([5, 1, 2], [0, 2, 3])
            after = contents(backend, ends[1])
        for new, held in zip(after, before, strict=True):
            assert (new[[0, 2, 3]] == held[[5, 1, 2]]).all()
        moved = {word for call in calls for word in call.split() if word.startswith("copy_")}
        assert moved == {"copy_d2h" if swap == "out" else "copy_h2d"}


FULL = """
import numpy as np
from sagellm_backend import DType, KVLayout, get_provider
from sagellm_backend.errors import OutOfMemoryError
with get_provider("kunlun") as backend:
    layout = KVLayout(2, 2, 64, 16, DType.FP32)
    def refused(make):
        try:
            make()
        except OutOfMemoryError as error:
            return error.numbers['requested']
    held = backend.empty((40 << 20,), DType.INT8)
    print(refused(lambda: backend.empty((40 << 20,), DType.INT8)) == 40 << 20)
    print(refused(lambda: backend.kv_pool(layout, 2048)) is not None)
    del held
    backend.clear_cache()
    held = backend.empty((40 << 20,), DType.INT8)
    with backend.kv_pool(layout, 64) as pool:
        print(pool.num_free)
    print(float(backend.to_numpy(backend.from_numpy(np.ones(1, np.float32)))[0]))
"""


def test_a_full_device_is_our_error_and_the_provider_works_on():
    told = output_of(FULL, KUNLUN_SIM_MEMORY_MB="64")
    assert told.split() == ["True", "True", "64", "1.0"]


def test_a_device_that_is_full_from_the_start_is_named():
    told = output_of(
        "from sagellm_backend import get_provider\n"
        "try:\n"
        "    get_provider('kunlun')\n"
        "except MemoryError as error:\n"
        "    print('kunlun' in str(error) and 'memory' in str(error))\n",
        KUNLUN_SIM_MEMORY_MB="0",
    )
    assert told.split() == ["True"]
