"""Reference provider: arrays, memory limits and what the host may not do."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import (
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.kv import KVLayout
from sagellm_backend.reference.arrays import DeviceArray, HostAccessError
from sagellm_backend.reference.provider import create_reference_backend

DTYPES = [dtype for dtype in DType if dtype is not DType.INT4]
MEGABYTE = 1 << 20
LAYOUT = KVLayout(num_layers=1, num_kv_heads=2, head_dim=8, block_size=4, dtype="fp32", order="HND")


@pytest.fixture
def backend():
    with create_reference_backend({"memory_limit": MEGABYTE}) as made:
        yield made


@pytest.fixture
def array(backend):
    return backend.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))


HOST_ACCESS = {
    "asarray": np.asarray,
    "asarray-dtype": lambda a: np.asarray(a, np.float64),
    "array-of-arrays": lambda a: np.array([a, a]),
    "array": lambda a: a.__array__(),
    "array_interface": lambda a: a.__array_interface__,
    "dlpack": np.from_dlpack,
    "memoryview": memoryview,
    "bytes": bytes,
    "getitem": lambda a: a[0],
    "setitem": lambda a: operator.setitem(a, 0, 1.0),
    "iter": iter,
    "list": list,
    "len": len,
    "contains": lambda a: 1.0 in a,
    "bool": bool,
    "float": float,
    "int": int,
    "index": operator.index,
    "complex": complex,
    "neg": operator.neg,
    "abs": abs,
    "round": round,
    "eq": lambda a: a == a,  # noqa: PLR0124 - that it is refused is the point
    "ne-scalar": lambda a: a != 0,
    "lt": lambda a: a < 1,
    "add": lambda a: a + 1,
    "radd": lambda a: 1 + a,
    "iadd": lambda a: operator.iadd(a, 1),
    "matmul": lambda a: a @ a,
    "pow": lambda a: a**2,
    "divmod": lambda a: divmod(a, 2),
    "numpy-radd": lambda a: np.ones(3) + a,
    "ufunc": np.exp,
    "ufunc-out": lambda a: np.add(1, 1, out=(a,)),
    "function": lambda a: np.concatenate([a, a]),
    "fill-host": lambda a: operator.setitem(np.zeros((2, 3)), ..., a),
    "copyto": lambda a: np.copyto(np.zeros((2, 3)), a),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("access", HOST_ACCESS.values(), ids=HOST_ACCESS)
def test_host_cannot_touch_the_data(backend, array, access):
    with pytest.raises((TypeError, ValueError)) as refusal:
        access(array)
    if isinstance(refusal.value, InvalidArgumentError):
        assert "to_numpy" in str(refusal.value)
    assert backend.to_numpy(array).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_slice_is_a_view_that_keeps_the_memory(backend):
    before = backend.memory_stats()["allocated_bytes"]
    part = backend.from_numpy(np.arange(24).reshape(4, 6))[1:3, 2:]
    assert backend.to_numpy(part).tolist() == [[8, 9, 10, 11], [14, 15, 16, 17]]
    assert backend.memory_stats()["allocated_bytes"] == before + 192
    assert backend.to_numpy(part[5:]).shape == (0, 4)


@pytest.mark.parametrize("key", [0, (slice(1), 0), None, ..., slice(None, None, -1), [0, 1], "a"])
def test_other_parts_than_slices_are_refused(array, key):
    with pytest.raises(HostAccessError, match="to_numpy"):
        array[key]


def test_more_slices_than_dimensions_are_refused(array):
    with pytest.raises(InvalidArgumentError, match=r"shape=\(2, 3\).* has no part"):
        array[:1, :1, :1]


def test_refusal_names_the_array_and_is_an_invalid_argument(array):
    with pytest.raises(InvalidArgumentError, match=r"shape=\(2, 3\).*to_numpy"):
        np.asarray(array)


def test_repr_shows_the_form_and_no_data(backend):
    array = backend.from_numpy(np.full(3, 12345.0, np.float16))
    assert repr(array) == "DeviceArray(shape=(3,), dtype=float16, device='reference:0')"


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_round_trip_is_bit_exact(backend, dtype):
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 256, 4 * 6 * dtype.numpy.itemsize, np.uint8)
    host = bits.view(dtype.numpy).reshape(4, 6)[:, ::2]
    wanted = host.tobytes()
    array = backend.from_numpy(host)
    bits[:] = 0
    back = backend.to_numpy(array)
    assert dtype_of(array) is dtype
    assert (array.shape, array.ndim, array.nbytes) == ((4, 3), 2, 12 * dtype.numpy.itemsize)
    assert back.dtype == dtype.numpy
    assert back.tobytes() == wanted


def test_to_numpy_gives_a_copy(backend, array):
    backend.to_numpy(array)[:] = 9
    assert backend.to_numpy(array).max() == 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_fresh_memory_is_poisoned(backend, dtype):
    values = backend.to_numpy(backend.empty((3, 5), dtype))
    assert (np.isnan(values.astype(np.float32)) if dtype.is_floating else values == -1).all()


def test_int4_arrays_are_not_offered(backend):
    with pytest.raises(CapabilityError):
        backend.empty(4, DType.INT4)


class TestReshape:
    def test_is_a_view_that_shares_memory(self, backend, array):
        view = array.reshape((3, 2))
        before = backend.memory_stats()["allocated_bytes"]
        backend._write_back(view, np.zeros((3, 2), np.float32))
        assert backend.to_numpy(array).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert backend.memory_stats()["allocated_bytes"] == before

    @pytest.mark.parametrize("shape", [((6,),), (6,), (-1,), (3, 2), ((3, -1),), (1, 2, 3, 1)])
    def test_takes_a_tuple_or_sizes(self, array, shape):
        reshaped = array.reshape(*shape)
        assert isinstance(reshaped, DeviceArray)
        assert reshaped.nbytes == array.nbytes

    @pytest.mark.parametrize("shape", [(4,), (-1, -1), ("a",), (0, -1), (-1, 4)])
    def test_refuses_what_does_not_fit(self, array, shape):
        with pytest.raises(InvalidArgumentError, match="reshape"):
            array.reshape(*shape)

    def test_refuses_to_copy(self, backend):
        cache = backend.kv_pool(LAYOUT, 3).key_cache(0)
        assert cache.reshape(1, 3, 4, 2, 8).shape == (1, 3, 4, 2, 8)
        with pytest.raises(InvalidArgumentError, match="copied"):
            cache.reshape(12, 16)

    def test_keeps_the_memory_alive(self, backend):
        start = backend.memory_stats()["allocated_bytes"]
        view = backend.from_numpy(np.zeros(8, np.float32)).reshape(2, 4)
        assert backend.memory_stats()["allocated_bytes"] == start + 32
        del view
        assert backend.memory_stats()["allocated_bytes"] == start


class TestMemory:
    def test_out_of_memory_has_numbers_and_is_survived(self, backend):
        held = backend.empty(MEGABYTE - 100, "int8")
        with pytest.raises(OutOfMemoryError) as error:
            backend.empty(101, "int8")
        assert error.value.numbers == {"requested": 101, "free": 100, "limit": MEGABYTE}
        assert backend.memory_stats()["allocated_bytes"] == MEGABYTE - 100
        del held
        assert backend.empty(MEGABYTE, "int8").nbytes == MEGABYTE

    def test_outputs_are_charged_at_the_call(self, backend):
        rows = backend.empty((1, 64), "fp32")
        weight = backend.empty((3000, 64), "fp32")
        filler = backend.empty(MEGABYTE - rows.nbytes - weight.nbytes - 11_999, "int8")
        kernel = backend.get_kernel("linear")
        before = backend.memory_stats()
        with pytest.raises(OutOfMemoryError):
            kernel(rows, weight)
        assert backend.memory_stats() == before
        del filler
        assert kernel(rows, weight).nbytes == 12_000

    def test_the_simulated_device_is_the_limit(self):
        total = 1 << 30
        with create_reference_backend() as backend:
            capability, stats = backend.capability(), backend.memory_stats()
            assert capability.total_memory_bytes == stats["device_total_bytes"] == total
            with pytest.raises(OutOfMemoryError):
                backend.empty(total + 1, "int8")

    def test_devices_have_memory_of_their_own(self, backend):
        array = backend.empty(1000, "int8", location="reference:1")
        assert array.device == "reference:1"
        assert backend.memory_stats()["allocated_bytes"] == 0
        stats = backend.memory_stats("reference:1")
        assert stats["other_bytes"] == stats["device_total_bytes"] - stats["device_free_bytes"]
        assert stats["other_bytes"] == 1000

    def test_stats_return_to_the_start(self, backend):
        start = backend.memory_stats()["allocated_bytes"]
        kernel = backend.get_kernel("matmul")
        array = backend.from_numpy(np.ones((8, 8), np.float32))
        for _ in range(20):
            array = kernel(array, array)
        backend.synchronize()
        del array
        assert backend.memory_stats()["allocated_bytes"] == start
        assert backend.memory_stats()["peak_allocated_bytes"] > 0

    def test_eight_threads_leave_the_stats_where_they_began(self, backend):
        start = threading.Barrier(8)

        def hammer(seed):
            rng = np.random.default_rng(seed)
            held = []
            start.wait()
            refused = 0
            for size in rng.integers(0, MEGABYTE // 4, 300):
                try:
                    held.append(backend.empty(int(size), "int8"))
                except OutOfMemoryError:
                    refused += 1
                    held.clear()
                if len(held) > 6:
                    del held[rng.integers(len(held))]
            return refused

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(hammer, range(8))) > 0
        gc.collect()
        stats = backend.memory_stats()
        assert stats["allocated_bytes"] == 0
        assert stats["peak_allocated_bytes"] <= MEGABYTE

    def test_garbage_collected_inside_the_ledger_does_not_deadlock(self, backend):
        def collect_in_here():
            loop = [backend.empty(8, "int8")]
            loop.append(loop)
            del loop
            with backend._ledgers.of("reference:0")._lock:
                gc.collect()

        thread = threading.Thread(target=collect_in_here, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        assert backend.memory_stats()["allocated_bytes"] == 0


class TestHostArrays:
    def test_round_trip(self, backend):
        host = backend.from_numpy(np.arange(4), location="host")
        assert host.device == "host"
        assert backend.to_numpy(host).tolist() == [0, 1, 2, 3]

    def test_kernels_refuse_them(self, backend, array):
        host = backend.from_numpy(np.zeros((5, 3), np.float32), location="host")
        with pytest.raises(InvalidArgumentError, match="host memory"):
            backend.get_kernel("linear")(array, host)


def test_a_view_of_a_closed_pool_is_refused(backend):
    pool = backend.kv_pool(LAYOUT, 3)
    cache = pool.key_cache(0)
    pool.close()
    with pytest.raises(UnavailableError, match="closed"):
        backend.to_numpy(cache)
    key = backend.empty((1, 2, 8), "fp32")
    slots = backend.from_numpy(np.zeros(1, np.int64))
    with pytest.raises(UnavailableError, match="closed"):
        backend.get_kernel("kv_write")(key, key, cache, cache, slots)
