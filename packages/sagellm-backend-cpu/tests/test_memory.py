"""Memory of the CPU: every byte is charged, and failures leave no trace."""

import threading

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider, DType
from sagellm_backend.errors import (
    BackendError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.memory import MemoryStats

DTYPES = [DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8, DType.INT32, DType.INT64]
MIB = 1 << 20


@pytest.fixture
def config():
    return {"memory_limit": MIB}


def own(stats):
    """What only this provider can change, the peak excepted."""
    moving = ("peak_allocated_bytes", "device_total_bytes", "device_free_bytes")
    return {name: value for name, value in stats.items() if name not in moving}


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_charged_while_any_view_lives(backend, dtype):
    before = own(backend.memory_stats())
    array = backend.empty((8, 32), dtype)
    nbytes = dtype.nbytes(256)
    held = own(backend.memory_stats())
    assert held == {
        **before,
        "allocated_bytes": before["allocated_bytes"] + nbytes,
        "other_bytes": before["other_bytes"] + nbytes,
        "reserved_bytes": before["reserved_bytes"] + nbytes,
    }
    view = array[3:4].view(-1)[5:].reshape(1, -1)
    del array
    assert own(backend.memory_stats()) == held
    del view
    assert own(backend.memory_stats()) == before


def test_a_view_in_numpy_or_dlpack_keeps_the_memory_charged(backend):
    array = backend.empty(1000, "fp32")
    views = [array.numpy(), torch.from_dlpack(array)]
    del array
    while views:
        assert backend.memory_stats()["other_bytes"] == 4000
        views.pop()
    assert backend.memory_stats()["other_bytes"] == 0


def test_the_host_and_the_device_share_one_limit(backend):
    kept = [backend.empty(MIB // 2, "int8", place) for place in ("device", "host")]
    with pytest.raises(OutOfMemoryError):
        backend.empty(1, "int8", "host")
    assert backend.memory_stats("host")["allocated_bytes"] == len(kept) * MIB // 2


def test_out_of_memory_says_the_numbers_and_the_next_request_succeeds(backend):
    kept = backend.empty(MIB - 100, "int8")
    before = backend.memory_stats()
    for call in (
        lambda: backend.empty(101, "int8"),
        lambda: backend.from_numpy(np.zeros(101, np.int8)),
    ):
        with pytest.raises(OutOfMemoryError, match="101 bytes were requested on cpu") as caught:
            call()
        assert caught.value.numbers == {"requested": 101, "free": 100, "limit": MIB}
        assert caught.value.code.value == "resource_exhausted"
    assert own(backend.memory_stats()) == own(before)
    fits = backend.empty(100, "int8")
    assert backend.memory_stats()["allocated_bytes"] == MIB
    del kept, fits
    assert tuple(backend.empty(MIB, "int8").shape) == (MIB,)


def test_the_peak_is_the_most_that_was_held(backend):
    first = backend.empty(3000, "int8")
    del first
    second = backend.empty(1000, "int8")
    assert backend.memory_stats()["peak_allocated_bytes"] == 3000
    del second


def test_what_the_system_refuses_is_out_of_memory_and_leaves_no_charge():
    backend = CPUBackendProvider({"memory_limit": 1 << 62})
    before = own(backend.memory_stats())
    with pytest.raises(OutOfMemoryError, match="operating system refused"):
        backend.empty(1 << 60, "int8")
    with pytest.raises(OutOfMemoryError):
        backend.from_numpy(np.broadcast_to(np.float32(0), (1 << 50,)))
    assert own(backend.memory_stats()) == before


def test_stats_have_the_declared_keys_and_no_side_effects(backend):
    array = backend.empty(100, "int8")
    first = backend.memory_stats()
    assert first.keys() == MemoryStats.__annotations__.keys()
    assert all(type(value) is int for value in first.values())
    assert own(backend.memory_stats()) == own(first)
    assert first["limit_bytes"] == MIB
    assert 0 < first["device_free_bytes"] <= first["device_total_bytes"]
    first["allocated_bytes"] = 0
    assert backend.memory_stats()["allocated_bytes"] == 100
    del array


@pytest.mark.parametrize("device", ["cuda:0", "cpu:1", 0, [], "here"])
def test_stats_of_devices_that_are_not_there_are_refused(backend, device):
    with pytest.raises(BackendError):
        backend.memory_stats(device)


def test_providers_account_for_themselves(backend):
    with CPUBackendProvider() as other:
        array = other.empty(1000, "int8")
        assert backend.memory_stats()["allocated_bytes"] == 0
        assert other.memory_stats()["allocated_bytes"] == 1000
        del array


def test_a_closed_provider_gives_no_memory_and_keeps_what_it_gave():
    backend = CPUBackendProvider()
    array = backend.from_numpy(np.arange(3))
    backend.close()
    with pytest.raises(UnavailableError, match="closed"):
        backend.empty(1, "fp32")
    with pytest.raises(UnavailableError, match="closed"):
        backend.from_numpy(np.zeros(1, np.float32))
    assert backend.to_numpy(array).tolist() == [0, 1, 2]
    del array
    assert backend.memory_stats()["allocated_bytes"] == 0


def run_threads(work, count=8):
    """Run ``work(number)`` in threads; their failures are raised here."""
    faults = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - a thread has nobody else to tell
            faults.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_100_000_arrays_from_eight_threads_leave_no_trace():
    backend = CPUBackendProvider({"memory_limit": MIB})
    before = own(backend.memory_stats())

    def work(number):
        for index in range(12_500):
            array = backend.empty((number + 1, index % 7), "fp16")
            del array

    run_threads(work)
    after = backend.memory_stats()
    assert own(after) == before
    assert 0 < after["peak_allocated_bytes"] <= MIB


def test_100_000_kv_blocks_from_eight_threads_leave_no_trace():
    backend = CPUBackendProvider({"kv_blocks": 64})
    before = own(backend.memory_stats())

    def work(number):
        dtype = (DType.FP16, DType.BF16)[number % 2]
        for index in range(12_500):
            backend.kv_block_free(backend.kv_block_alloc(1 + index % 32, dtype))

    run_threads(work)
    after = own(backend.memory_stats())
    pools = 2 * 64 * backend.config.kv_layout.page_bytes
    assert after == {**before, "reserved_bytes": before["reserved_bytes"] + pools}
    backend.clear_cache()
    assert own(backend.memory_stats()) == before


def test_clearing_the_cache_beside_allocations_disturbs_none():
    backend = CPUBackendProvider({"kv_blocks": 8})
    before = own(backend.memory_stats())
    done = threading.Event()

    def work(number):
        if number == 0:
            while not done.is_set():
                backend.clear_cache()
            return
        try:
            for _ in range(300):
                backend.kv_block_free(backend.kv_block_alloc(16, DType.FP16))
        finally:
            done.set()

    run_threads(work, 4)
    backend.clear_cache()
    assert own(backend.memory_stats()) == before
