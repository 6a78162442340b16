"""Subnormal numbers: the calls that make them, and how much of them may be lost."""

import numpy as np
import pytest

from sagellm_backend.conformance.accuracy import ratio
from sagellm_backend.conformance.subnormals import (
    RECIPES,
    smallest_normal,
    smallest_subnormal,
    subnormals,
)
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.ops import OPERATIONS, operation
from sagellm_backend.ops.args import FLOATING


def made(name, dtype):
    op = operation(name)
    for call in RECIPES[name](np.random.default_rng(5), dtype):
        arguments = op.bind((), call)
        op.check(arguments)
        yield op, arguments


def test_the_limits_are_those_of_the_formats():
    limits = {dtype: (smallest_normal(dtype), smallest_subnormal(dtype)) for dtype in FLOATING}
    assert limits == {
        DType.FP32: (2.0**-126, 2.0**-149),
        DType.FP16: (2.0**-14, 2.0**-24),
        DType.BF16: (2.0**-126, 2.0**-133),
    }


@pytest.mark.parametrize("dtype", FLOATING, ids=lambda dtype: dtype.value)
def test_they_are_below_the_smallest_normal_and_not_zero(dtype):
    drawn = np.abs(subnormals(np.random.default_rng(0), dtype, 5000).astype(np.float64))
    assert 0 < drawn.min() < drawn.max() < smallest_normal(dtype)


def test_every_operation_that_computes_numbers_has_calls():
    ids = {name for name, op in OPERATIONS.items() if all(a.dtype != "T" for a in op.output_args())}
    assert set(RECIPES) == set(OPERATIONS) - ids


@pytest.mark.parametrize("dtype", FLOATING, ids=lambda dtype: dtype.value)
@pytest.mark.parametrize("name", RECIPES)
def test_right_results_pass_and_flushed_ones_do_not_unless_declared(name, dtype):
    for op, arguments in made(name, dtype):
        right = list(op.run_reference(arguments, dtype))
        floating = [array for array in right if dtype_of(array) is dtype]
        assert sum(np.count_nonzero(array) for array in floating) >= 32
        assert ratio(op, arguments, right, dtype).passed
        limit = smallest_normal(dtype)
        flushed = [np.where(np.abs(a) < limit, a.dtype.type(0), a) for a in right]
        small = sum(map(np.count_nonzero, right)) > sum(map(np.count_nonzero, flushed))
        if small:
            assert not ratio(op, arguments, flushed, dtype).passed
        exact = op.accuracy.name == "EXACT"
        assert ratio(op, arguments, flushed, dtype, flushes=True).passed is not (small and exact)


@pytest.mark.parametrize("dtype", FLOATING, ids=lambda dtype: dtype.value)
def test_half_a_step_may_be_lost_and_ten_may_not(dtype):
    op, arguments = next(made("rms_norm", dtype))
    right = op.run_reference(arguments, dtype)[0]
    step = right.dtype.type(smallest_subnormal(dtype))
    assert ratio(op, arguments, right, dtype).r_max <= 1
    found = ratio(op, arguments, (right + 10 * step).astype(right.dtype), dtype)
    assert not found.passed
