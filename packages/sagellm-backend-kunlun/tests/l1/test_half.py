"""Half types, as far as Paddle's CPU kernels have them: the provider computes in fp32, rounds once."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from sagellm_backend.dtypes import DType
from sagellm_backend.kunlun import arrays, kernels
from sagellm_backend.ops import OPERATIONS

# The CPU lacks kernels of half types for the rest: add, matmul, embedding, fp16's index_select.
COMPUTED = ("rms_norm", "layer_norm", "silu_and_mul", "gelu", "softmax", "rope")
HALF = (DType.FP16, DType.BF16)
# Paddle's CPU makes up to 6.9e-5 of an fp32 below fp16's range when it casts it to fp16.
FLOOR = {DType.FP16: 7e-5, DType.BF16: 4e-6}


def native(value):
    if not isinstance(value, np.ndarray):
        return value
    made = paddle.empty(
        list(value.shape), arrays.PADDLE_DTYPES[DType.parse(value.dtype)], device=paddle.CPUPlace()
    )
    if value.size:
        made.copy_(arrays.as_tensor(np.ascontiguousarray(value).reshape(value.shape)), True)
    return made


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = paddle.device.get_device()
    paddle.set_device("cpu")
    yield
    paddle.set_device(before)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", COMPUTED)
def test_results_are_rounded_once(name, dtype):
    operation = OPERATIONS[name]
    for case in operation.inputs(np.random.default_rng(5), dtype):
        found = kernels.KERNELS[name](**{key: native(value) for key, value in case.items()})
        exact = operation.exact_results(dict(case))
        for got, wanted in zip(found if isinstance(found, tuple) else (found,), exact, strict=True):
            host = arrays.to_numpy(got)
            assert host.dtype == dtype.numpy
            limit = (1.1 * dtype.unit_roundoff + 2e-5) * np.abs(wanted) + FLOOR[dtype]
            if name in {"layer_norm", "rope"}:  # of which terms cancel
                limit += 2e-5 * max(1.0, float(np.abs(wanted).max(initial=0)))
            assert (np.abs(host.astype(np.float64) - wanted) <= limit).all(), case.label


@pytest.mark.parametrize("swapped", [True, False], ids=["HND", "NHD"])
@pytest.mark.parametrize("dtype", HALF)
def test_caches_are_written_bit_for_bit(dtype, swapped):
    rng = np.random.default_rng(5)

    def bits(*shape):
        return rng.integers(0, 1 << 16, shape, np.uint16).view(dtype.numpy)

    key, value, slots = bits(5, 2, 24), bits(5, 2, 24), np.array([3, -1, 0, 11, 6])
    wanted = [bits(3, 4, 2, 24) for _ in range(2)]
    caches = [
        paddle.transpose(native(one.transpose(0, 2, 1, 3)), [0, 2, 1, 3])
        if swapped
        else native(one)
        for one in wanted
    ]
    kernels.kv_write(native(key), native(value), *caches, native(slots))
    OPERATIONS["kv_write"].reference(key, value, *wanted, slots)
    for cache, expected in zip(caches, wanted, strict=True):
        assert (arrays.to_numpy(cache).view(np.uint16) == expected.view(np.uint16)).all()
