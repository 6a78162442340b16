"""Arrays of the CPU: contents bit for bit, and what is refused."""

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider, DType
from sagellm_backend.cpu.memory import ALIGNMENT
from sagellm_backend.errors import CapabilityError, InvalidArgumentError

DTYPES = [DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8, DType.INT32, DType.INT64]
SHAPES = [(), (1,), (0,), (3, 0, 5), (7, 3), (2, 3, 4, 5)]


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
