"""fp8 codes of weights, as the engine makes them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from sagellm_backend.dtype_conversion import (
    compute_fp8_quantization_params_numpy as params_of,
)
from sagellm_backend.dtype_conversion import quantize_to_fp8_numpy as quantize
from sagellm_backend.errors import InvalidArgumentError


def decode(codes):
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_magnitude_becomes_448(sign):
    weight = np.array([[0.5, sign * 7.0], [-1.25, 0.0]], np.float32)
    params = params_of(weight)
    assert params.scale == pytest.approx(7 / 448)
    codes = quantize(weight, params)
    assert (codes.dtype, codes.shape) == (np.uint8, (2, 2))
    assert decode(codes)[0, 1] == sign * 448


def test_values_come_back_within_half_a_step():
    weight = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    params = params_of(weight)
    back = decode(quantize(weight, params)) * params.scale
    # Three bits of mantissa; below 2**-6 the steps are even.
    step = np.maximum(np.abs(weight) / 16, params.scale * 2.0**-10)
    assert (np.abs(back - weight) <= step * 1.001).all()


def test_codes_keep_within_the_range_whatever_the_scale():
    weight = np.array([1e6, -1e6, 449.0, 0.0], np.float32)
    params = params_of(np.array([448.0], np.float32))
    assert decode(quantize(weight, params)).tolist() == [448, -448, 448, 0]


@pytest.mark.parametrize("weight", [np.zeros((3, 4), np.float32), np.zeros((0, 4), np.float32)])
def test_zeros_stay_zeros(weight):
    params = params_of(weight)
    assert params.scale > 0
    assert not decode(quantize(weight, params)).any()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(InvalidArgumentError, match="inf or NaN"):
        params_of(np.array([1.0, bad], np.float32))


def test_integers_are_refused():
    with pytest.raises(InvalidArgumentError, match="int64"):
        params_of(np.arange(3))
