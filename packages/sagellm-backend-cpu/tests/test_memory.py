"""Arrays of the CPU: contents bit for bit, bytes to the last one, and refusals that leave no trace."""

import gc
import threading

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider, DType
from sagellm_backend.cpu.memory import ALIGNMENT
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.memory import MemoryStats

DTYPES = [DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8, DType.INT32, DType.INT64]
SHAPES = [(), (1,), (0,), (3, 0, 5), (7, 3), (2, 3, 4, 5)]
MIB = 1 << 20


@pytest.fixture
def backend():
    with CPUBackendProvider({"memory_limit": MIB}) as provider:
        yield provider
        if provider.memory_stats()["allocated_bytes"]:
            gc.collect()
        assert provider.memory_stats()["allocated_bytes"] == 0


def own(stats):
    """What only this provider can change, the peak excepted."""
    moving = ("peak_allocated_bytes", "device_total_bytes", "device_free_bytes")
    return {name: value for name, value in stats.items() if name not in moving}


def bits(dtype, shape, seed=0):
    """Every bit pattern may occur, NaN with payloads among them."""
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.random.default_rng(seed).integers(0, 256, count * dtype.bits // 8, dtype=np.uint8)
    return raw.view(dtype.numpy).reshape(shape)


@pytest.mark.parametrize("location", ["device", "host", "cpu", "cpu:0"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_keep_every_bit_both_ways(backend, dtype, shape, location):
    host = bits(dtype, shape)
    array = backend.from_numpy(host, location)
    assert tuple(array.shape) == shape
    assert DType.parse(array.dtype) is dtype
    back = backend.to_numpy(array)
    assert back.dtype == dtype.numpy
    assert back.shape == shape
    assert back.tobytes() == host.tobytes()


def test_all_values_of_fp8_come_back():
    host = np.arange(256, dtype=np.uint8).view(DType.FP8.numpy)
    backend = CPUBackendProvider()
    assert backend.to_numpy(backend.from_numpy(host)).tobytes() == host.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_share_no_memory(backend, dtype):
    host = np.ones((4, 4), dtype.numpy)
    array = backend.from_numpy(host)
    host[...] = 0
    back = backend.to_numpy(array)
    assert (back == np.ones((), dtype.numpy)).all()
    back[...] = 0
    assert (backend.to_numpy(array) == np.ones((), dtype.numpy)).all()


def test_strided_readonly_and_reversed_arrays_are_copied_in_their_order(backend):
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    for host in (base[::2, 1::2], base.T, base[::-1], frozen, np.broadcast_to(base[0], (3, 6))):
        np.testing.assert_array_equal(backend.to_numpy(backend.from_numpy(host)), host)


def test_strided_views_come_to_the_host_in_their_order(backend):
    array = backend.from_numpy(np.arange(24, dtype=np.int64).reshape(4, 6))
    np.testing.assert_array_equal(
        backend.to_numpy(array.t()[::2]), np.arange(24).reshape(4, 6).T[::2]
    )


def test_numbers_and_lists_are_taken_as_numpy_takes_them(backend):
    assert backend.to_numpy(backend.from_numpy([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]]
    assert backend.to_numpy(backend.from_numpy(np.float32(2.5))).shape == ()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 17, 1000])
def test_every_array_begins_at_a_cache_line(backend, dtype, count):
    arrays = [backend.empty(count, dtype) for _ in range(4)]
    assert [array.data_ptr() % ALIGNMENT for array in arrays] == [0] * 4


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


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, id=str(index))
        for index, shape in enumerate(
            [None, "3", -1, (2, -1), 1.5, (1.0,), True, (1 << 62, 8), (0, 1 << 62), [1] * 33, {3}]
        )
    ],
)
def test_impossible_shapes_are_refused(backend, shape):
    with pytest.raises(InvalidArgumentError):
        backend.empty(shape, "fp32")


@pytest.mark.parametrize("dtype", ["int4", np.dtype(DType.INT4.numpy)], ids=["name", "numpy"])
def test_int4_has_no_arrays_and_says_so(backend, dtype):
    with pytest.raises(CapabilityError, match="arrays of int4"):
        backend.empty(2, dtype)


@pytest.mark.parametrize("dtype", [None, "float64", torch.bool, 5, [], object])
def test_what_is_no_dtype_is_refused(backend, dtype):
    with pytest.raises(InvalidArgumentError, match="is not a data type"):
        backend.empty(2, dtype)


@pytest.mark.parametrize("location", [None, "", "gpu", "cuda", "cuda:0", "cpu:1", "cpu:-1", 0, []])
def test_places_that_are_none_are_refused(backend, location):
    for call in (
        lambda: backend.empty(2, "fp32", location),
        lambda: backend.from_numpy(np.zeros(2, np.float32), location),
    ):
        with pytest.raises(InvalidArgumentError):
            call()


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(array, id=str(index))
        for index, array in enumerate(
            [
                None,
                "text",
                [[1], [2, 3]],
                np.zeros(2),
                np.zeros(2, bool),
                np.zeros(2, np.uint8),
                np.zeros(2, ">f4"),
                np.zeros(2, "f4,i4"),
                np.zeros(2, object),
                np.zeros(2, DType.INT4.numpy),
                torch.zeros(2, dtype=torch.bfloat16),
                torch.zeros(2, requires_grad=True),
            ]
        )
    ],
)
def test_host_data_that_is_no_array_here_is_refused(backend, array):
    with pytest.raises((InvalidArgumentError, CapabilityError)):
        backend.from_numpy(array)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(array, id=str(index))
        for index, array in enumerate(
            [
                None,
                3,
                [1.0],
                np.zeros(2),
                torch.zeros(2, device="meta"),
                torch.eye(2).to_sparse(),
                torch.zeros(2, dtype=torch.float8_e5m2),
            ]
        )
    ],
)
def test_only_arrays_of_the_backend_come_to_the_host(backend, array):
    with pytest.raises(InvalidArgumentError):
        backend.to_numpy(array)


def test_results_of_torch_come_to_the_host(backend):
    x = backend.from_numpy(np.array([1.0, -1.0], np.float32))
    assert backend.to_numpy(x > 0).tolist() == [True, False]
    assert backend.to_numpy(x.requires_grad_()).tolist() == [1.0, -1.0]


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
