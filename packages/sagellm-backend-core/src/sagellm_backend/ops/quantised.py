"""Linear over quantised weights: linear_w8a16, linear_w8a8, linear_w4a16.

Optional for a backend: most hardware has kernels for some of them only. Weights are made by
:mod:`sagellm_backend.quantization`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Array, f64
from sagellm_backend.ops.quantised_cases import w4a16_cases, w8a8_cases, w8a16_cases
from sagellm_backend.ops.shapes import Bindings
from sagellm_backend.ops.statics import Static, positive_int
from sagellm_backend.ops.table import Arguments, declare

ZERO_POINT = 8
"""What the code of an int4 weight stands for 0 by where no zero points are given."""

_LIMIT = np.float32(127)
_NEAR = 4 * DType.FP32.unit_roundoff


def _weight_only_magnitude(x: Array, weight: Array, bias: Array | None) -> tuple[Array, ...]:
    """The terms, and one rounding of each weight to the dtype, whose signs are independent."""
    terms = np.abs(f64(x)) @ np.abs(weight).T
    spread = np.sqrt(f64(x) ** 2 @ (weight**2).T)
    found = terms + dtype_of(x).unit_roundoff / DType.FP32.unit_roundoff * spread
    return (found if bias is None else found + np.abs(f64(bias)),)


def _w8a16_magnitude(
    x: Array, weight: Array, scale: Array, bias: Array | None = None
) -> tuple[Array, ...]:
    return _weight_only_magnitude(x, f64(weight) * f64(scale)[:, None], bias)


@declare(
    args={
        "x": Arg("... i"),
        "weight": Arg("o i", "int8"),
        "scale": Arg("o", "fp32"),
        "bias": Arg("o", optional=True),
    },
    returns=(Arg("... o"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.MATMUL,
    inputs=w8a16_cases,
    magnitude=_w8a16_magnitude,
)
def linear_w8a16(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    """``x @ (weight * scale[:, None]).T + bias``: int8 weights with one scale per output feature.

    All values from -128 to 127 are weights. Products are accumulated in fp32 or better, the bias is
    added there, and the sum is rounded to the dtype once. A weight may be rounded to the dtype once
    after its scale is applied to it.

    This is GPTQ's and compressed-tensors' int8 with one group per channel.
    """
    product: Array = f64(x) @ f64(weight).T * f64(scale)
    return product if bias is None else product + f64(bias)


def quantise_rows(x: Array) -> tuple[Array, Array]:
    """Rows of ``x`` as whole numbers from -127 to 127, in float64, and the fp32 scale of each row.

    The scale is ``max(abs(row)) / 127``, a number is divided by it and rounded to the nearest, ties
    to even: each step in fp32. A row whose scale is 0 becomes zeros.
    """
    ratios, scales = _ratios(x)
    return f64(np.clip(np.rint(ratios), -_LIMIT, _LIMIT)), scales


def _ratios(x: Array) -> tuple[Array, Array]:
    wide = x.astype(np.float32)
    scales = np.abs(wide).max(axis=-1, keepdims=True) / _LIMIT
    return np.where(scales > 0, wide / np.where(scales > 0, scales, np.float32(1)), 0), scales


def _w8a8_magnitude(
    x: Array, weight: Array, scale: Array, bias: Array | None = None
) -> tuple[Array, ...]:
    """The terms, and one step of what lies so near a tie that fp32 may round it either way."""
    ratios, scales = _ratios(x)
    apart = np.abs(np.abs(ratios - np.floor(ratios)) - 0.5)
    steps = (apart <= _NEAR * np.abs(ratios)) / DType.FP32.unit_roundoff
    codes = np.abs(quantise_rows(x)[0]) + steps
    found = codes @ np.abs(f64(weight)).T * f64(scales) * np.abs(f64(scale))
    return (found if bias is None else found + np.abs(f64(bias)),)


@declare(
    args={
        "x": Arg("... i"),
        "weight": Arg("o i", "int8"),
        "scale": Arg("o", "fp32"),
        "bias": Arg("o", optional=True),
    },
    returns=(Arg("... o"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.MATMUL,
    inputs=w8a8_cases,
    magnitude=_w8a8_magnitude,
)
def linear_w8a8(x: Array, weight: Array, scale: Array, bias: Array | None = None) -> Array:
    """``linear_w8a16`` over rows of ``x`` that are quantised to int8 by a scale of their own.

    The scale of a row is ``max(abs(row)) / 127``; its numbers are divided by it and rounded to the
    nearest whole number, ties to even, all in fp32 (:func:`quantise_rows`). Where that lies within
    some units of fp32's last place of a tie, either neighbour is right. A row of zeros gives the
    bias, and a row with an infinity or NaN is undefined.

    The products of int8 are accumulated in int32, or so that no more is lost than in fp32; scales
    and bias are applied in fp32, and the result is rounded to the dtype once. This is
    compressed-tensors' W8A8 with dynamic activations per token and weights per channel.
    """
    codes, scales = quantise_rows(x)
    product: Array = codes @ f64(weight).T * f64(scales) * f64(scale)
    return product if bias is None else product + f64(bias)


def unpack_int4(packed: Array) -> Array:
    """The codes from 0 to 15 of packed int4, in uint8: two for each byte, the low half first."""
    raw = np.asarray(packed).view(np.uint8)
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)


def dequantise_int4(weight: Array, scale: Array, zero: Array | None) -> Array:
    """What packed int4 weights stand for, in float64 (out, in)."""
    codes = f64(unpack_int4(weight))
    grouped = codes.reshape(*scale.shape, -1)
    points = float(ZERO_POINT) if zero is None else f64(zero)[..., None]
    found: Array = (grouped - points) * f64(scale)[..., None]
    return found.reshape(codes.shape)


def _w4a16_magnitude(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> tuple[Array, ...]:
    return _weight_only_magnitude(x, dequantise_int4(weight, scale, zero), bias)


def _group_size(arguments: Arguments) -> int:
    return int(arguments["x"].shape[-1]) // int(arguments["scale"].shape[1])


def _w4a16_relate(_: Arguments, bindings: Bindings) -> str | None:
    inputs, groups = 2 * bindings["p"], bindings["g"]
    if inputs % (2 * groups):
        return f"{inputs} inputs make no {groups} groups of one even size"
    return None


def _w4a16_data(arguments: Arguments) -> str | None:
    zero: Any = arguments.get("zero")
    if zero is None or (zero.min() >= 0 and zero.max() <= 15):
        return None
    return f"zero lies within {int(zero.min())} and {int(zero.max())}, codes within 0 and 15"


@declare(
    args={
        "x": Arg("... 2*p"),
        "weight": Arg("o p", "int8"),
        "scale": Arg("o g", "fp32"),
        "zero": Arg("o g", "int8", optional=True),
        "bias": Arg("o", optional=True),
    },
    returns=(Arg("... o"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.MATMUL,
    inputs=w4a16_cases,
    statics={"group_size": Static(positive_int, _group_size)},
    relate=_w4a16_relate,
    inspect_data=_w4a16_data,
    magnitude=_w4a16_magnitude,
)
def linear_w4a16(
    x: Array, weight: Array, scale: Array, zero: Array | None = None, bias: Array | None = None
) -> Array:
    """``x @ w.T + bias`` over int4 weights ``w = (code - zero) * scale`` with scales per group.

    A byte of ``weight`` holds two codes from 0 to 15, neighbours along the inputs: the even one in
    its low half. The inputs are parted into ``g`` groups of one even size, each with a scale and a
    zero point per output feature; zero points lie within 0 and 15, and are 8 where none are given.

    Products are accumulated in fp32 or better, the bias is added there, and the sum is rounded to
    the dtype once. A weight may be rounded to the dtype once after its scale is applied to it.

    compressed-tensors' ``weight_packed``, read as bytes, is this layout; GPTQ's ``qweight`` is it
    when transposed, with one added to unpacked zero points of version 1, and inputs in the order of
    ``g_idx``; AWQ's ``qweight`` is packed along the outputs in an order of its own and has to be
    packed anew by :func:`sagellm_backend.quantization.pack_int4`.
    """
    product: Array = f64(x) @ dequantise_int4(weight, scale, zero).T
    return product if bias is None else product + f64(bias)
