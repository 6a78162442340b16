"""Faults of linear over quantised weights."""

from __future__ import annotations

import numpy as np

from sagellm_backend.conformance.zoo.member import honest, kernel_fault, with_kernels
from sagellm_backend.ops.cases import Array, f64
from sagellm_backend.ops.quantised import (
    dequantise_int4,
    linear_w4a16,
    linear_w8a8,
    linear_w8a16,
    quantise_rows,
)

_W8A16 = ("kernels.linear_w8a16",)
_W8A8 = ("kernels.linear_w8a8",)
_W4A16 = ("kernels.linear_w4a16",)


def _over_rounded(x: Array, weight: Array, bias: Array | None) -> Array:
    """The product with a weight that is rounded to the dtype, in fp32."""
    rounded = weight.astype(x.dtype).astype(np.float32)
    product: Array = x.astype(np.float32) @ rounded.T
    return product if bias is None else product + bias.astype(np.float32)


def _int8_rounded(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    return _over_rounded(x, weight * scale[:, None], bias)


def _int4_rounded(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    return _over_rounded(x, dequantise_int4(weight, scale, zero), bias)


def _int8_by_reciprocal(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    """Activations times 127 / max, where the reference divides by max / 127."""
    wide = x.astype(np.float32)
    top = np.abs(wide).max(axis=-1, keepdims=True)
    codes = np.rint(wide * (np.float32(127) / np.where(top > 0, top, np.float32(1))))
    product: Array = (codes @ weight.T.astype(np.float32)) * (top / np.float32(127)) * scale
    return product if bias is None else product + bias.astype(np.float32)


honest("Quantised weights are rounded to the dtype, activations scaled", profiles=("kernels",))(
    type(
        "QuantisesInOtherSteps",
        (
            with_kernels(
                {
                    "linear_w8a16": _int8_rounded,
                    "linear_w8a8": _int8_by_reciprocal,
                    "linear_w4a16": _int4_rounded,
                }
            ),
        ),
        {},
    )
)


@kernel_fault("linear_w8a16", "Scales of int8 weights are those of the inputs", kills=_W8A16)
def int8_scales_the_inputs(
    x: Array, weight: Array, scale: Array, bias: Array | None = None
) -> Array:
    factors = np.resize(f64(scale), weight.shape[1])
    product: Array = f64(x) * factors @ f64(weight).T
    return product if bias is None else product + f64(bias)


@kernel_fault("linear_w8a16", "An int8 weight of -128 becomes -127", kills=_W8A16)
def int8_clips_the_lowest(
    x: Array, weight: Array, scale: Array, bias: Array | None = None
) -> Array:
    return linear_w8a16(x, np.maximum(weight, np.int8(-127)), scale, bias)


@kernel_fault("linear_w8a16", "Int8 weights are read without their sign", kills=_W8A16)
def int8_without_sign(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    return linear_w8a16(x, weight.view(np.uint8), scale, bias)


@kernel_fault("linear_w8a16", "Products with int8 weights are summed up in fp16", kills=_W8A16)
def int8_sums_in_fp16(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    total = np.zeros((*x.shape[:-1], len(weight)), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        for columns in np.array_split(np.arange(x.shape[-1]), min(x.shape[-1], 64)):
            part = f64(x[..., columns]) @ f64(weight[:, columns]).T
            total = (f64(total) + part * f64(scale)).astype(np.float16)
    return f64(total) if bias is None else f64(total) + f64(bias)


@kernel_fault("linear_w8a16", "A product with int8 weights loses its bias", kills=_W8A16)
def int8_forgets_bias(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    del bias
    return linear_w8a16(x, weight, scale)


@kernel_fault(
    "linear_w8a8", "Products of int8 are summed up in int16, which saturates", kills=_W8A8
)
def int8_saturates(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    codes, sizes = quantise_rows(x)
    limits = np.iinfo(np.int16)
    total = np.zeros((*x.shape[:-1], len(weight)))
    for column in range(x.shape[-1]):
        total += codes[..., column, None] * f64(weight[:, column])
        total = total.clip(limits.min, limits.max)
    product: Array = total * f64(sizes) * f64(scale)
    return product if bias is None else product + f64(bias)


@kernel_fault("linear_w8a8", "One scale quantises all rows of a batch", kills=_W8A8)
def int8_one_scale_for_all_rows(
    x: Array, weight: Array, scale: Array, bias: Array | None = None
) -> Array:
    size = np.abs(f64(x)).max(initial=0) / 127 or 1.0
    product: Array = np.rint(f64(x) / size) @ f64(weight).T * size * f64(scale)
    return product if bias is None else product + f64(bias)


@kernel_fault("linear_w8a8", "Activations are truncated where they should be rounded", kills=_W8A8)
def int8_truncates(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    sizes = np.abs(f64(x)).max(axis=-1, keepdims=True) / 127
    codes = np.trunc(f64(x) / np.where(sizes > 0, sizes, 1))
    product: Array = codes @ f64(weight).T * sizes * f64(scale)
    return product if bias is None else product + f64(bias)


@kernel_fault("linear_w8a8", "Activations halfway are rounded away from zero", kills=_W8A8)
def int8_rounds_ties_away(
    x: Array, weight: Array, scale: Array, bias: Array | None = None
) -> Array:
    wide = x.astype(np.float32)
    sizes = np.abs(wide).max(axis=-1, keepdims=True) / np.float32(127)
    ratios = wide / np.where(sizes > 0, sizes, np.float32(1))
    codes = np.copysign(np.floor(np.abs(ratios) + np.float32(0.5)), ratios)
    product: Array = f64(codes) @ f64(weight).T * f64(sizes) * f64(scale)
    return product if bias is None else product + f64(bias)


@kernel_fault("linear_w8a8", "A row of zeros is divided by its scale of 0", kills=_W8A8)
def int8_divides_by_zero(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    silent = ~np.any(f64(x), axis=-1, keepdims=True)
    return np.where(silent, np.nan, linear_w8a8(x, weight, scale, bias))


@kernel_fault("linear_w8a8", "Activations are not quantised at all", kills=_W8A8)
def int8_keeps_activations(
    x: Array, weight: Array, scale: Array, bias: Array | None = None
) -> Array:
    return linear_w8a16(x, weight, scale, bias)


@kernel_fault("linear_w4a16", "The high half of a byte of int4 comes first", kills=_W4A16)
def int4_swaps_halves(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    raw = weight.view(np.uint8)
    return linear_w4a16(x, (raw >> 4 | raw << 4).view(np.int8), scale, zero, bias)


@kernel_fault("linear_w4a16", "Int4 weights have their zero at 0", kills=_W4A16)
def int4_without_zero_point(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    zero = np.zeros(scale.shape, np.int8) if zero is None else zero
    return linear_w4a16(x, weight, scale, zero, bias)


@kernel_fault("linear_w4a16", "Given zero points of int4 are not read", kills=_W4A16)
def int4_ignores_zero_points(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    del zero
    return linear_w4a16(x, weight, scale, None, bias)


@kernel_fault("linear_w4a16", "Zero points are one too low, as GPTQ stores them", kills=_W4A16)
def int4_zero_points_of_gptq(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    zero = None if zero is None else np.minimum(zero + np.int8(1), np.int8(15))
    return linear_w4a16(x, weight, scale, zero, bias)


@kernel_fault("linear_w4a16", "Groups of int4 take turns along the inputs", kills=_W4A16)
def int4_interleaves_groups(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    inputs, groups = x.shape[-1], scale.shape[1]
    order = np.arange(inputs) % groups
    mixed = dequantise_int4(weight, np.ones_like(scale), zero) * f64(scale)[:, order]
    product: Array = f64(x) @ mixed.T
    return product if bias is None else product + f64(bias)


@kernel_fault("linear_w4a16", "The scale of the first group is that of all", kills=_W4A16)
def int4_first_scale_for_all(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    return linear_w4a16(x, weight, np.repeat(scale[:, :1], scale.shape[1], 1), zero, bias)
