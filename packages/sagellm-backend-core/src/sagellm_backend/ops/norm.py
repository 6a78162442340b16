"""Normalisation: rms_norm, add_rms_norm, layer_norm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.dtypes import DType
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Array, Case, f64, normal
from sagellm_backend.ops.statics import Static, positive_real
from sagellm_backend.ops.table import declare

_EPS = {"eps": Static(positive_real)}
_SMALL = 1e-3
_RESIDUALS = {"small": _SMALL, "smaller-eps": _SMALL, "zeros": 0.0}


def _inputs(rng: np.random.Generator, dtype: DType) -> Iterator[tuple[str, Array, Array, float]]:
    """Label, x, weight and eps of the cases that every norm has."""
    shapes = {"one": (1, 1), "row": (1, 128), "odd": (7, 33), "3d": (2, 3, 64), "wide": (4, 2048)}
    for label, shape in shapes.items():
        weight = 1 + normal(rng, DType.FP32, shape[-1], scale=0.2)
        yield label, normal(rng, dtype, *shape), weight.astype(dtype.numpy), 1e-6
    weight = normal(rng, dtype, 256)
    # The mean square of fp16 activations beyond 256 overflows fp16.
    yield "large", normal(rng, dtype, 5, 256, scale=100.0, limit=300), weight, 1e-6
    # Rows as small as the root of eps show what was taken for it: a constant, or fp16's nearest.
    yield "small", normal(rng, dtype, 5, 256, scale=_SMALL), weight, 1e-5
    yield "smaller-eps", normal(rng, dtype, 5, 256, scale=_SMALL), weight, 1e-6
    yield "zeros", np.zeros((3, 256), dtype.numpy), weight, 1e-6
    yield "empty", np.zeros((0, 256), dtype.numpy), weight, 1e-6


def _rms_norm_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, x, weight, eps in _inputs(rng, dtype):
        yield Case(label, x=x, weight=weight, eps=eps)


def _rms_norm_magnitude(x: Array, weight: Array, eps: float) -> tuple[Array, ...]:
    return (np.abs(rms_norm(x, weight, eps)),)


@declare(
    args={"x": Arg("... d"), "weight": Arg("d")},
    returns=(Arg("... d"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.LAYERNORM,
    inputs=_rms_norm_cases,
    statics=_EPS,
    aliases=("rmsnorm",),
    magnitude=_rms_norm_magnitude,
    positive_sum="d",
)
def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis.

    Squares are summed in fp32 or better. The weight multiplies as it is (no ``1 + weight``). Zhang
    and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    wide = f64(x)
    square = np.mean(wide * wide, axis=-1, keepdims=True)
    result: Array = wide / np.sqrt(square + eps) * f64(weight)
    return result


def _add_rms_norm_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, x, weight, eps in _inputs(rng, dtype):
        residual = normal(rng, dtype, *x.shape, scale=_RESIDUALS.get(label, 2.0))
        yield Case(label, x=x, residual=residual, weight=weight, eps=eps)


def _add_rms_norm_magnitude(
    x: Array, residual: Array, weight: Array, eps: float
) -> tuple[Array, ...]:
    y, total = add_rms_norm(x, residual, weight, eps)
    return np.abs(y), np.abs(total)


@declare(
    args={"x": Arg("... d"), "residual": Arg("... d"), "weight": Arg("d")},
    returns=(Arg("... d"), Arg("... d", accuracy=Accuracy.ROUNDED)),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.LAYERNORM,
    inputs=_add_rms_norm_cases,
    statics=_EPS,
    magnitude=_add_rms_norm_magnitude,
    positive_sum="d",
)
def add_rms_norm(x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """``(rms_norm(sum, weight, eps), sum)`` with ``sum = x + residual``, rounded to the dtype.

    The norm reads the rounded sum, so that it equals an addition followed by :func:`rms_norm`.
    Neither argument is changed.
    """
    total = (f64(x) + f64(residual)).astype(x.dtype)
    return rms_norm(total, weight, eps), f64(total)


def _layer_norm_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, x, weight, eps in _inputs(rng, dtype):
        yield Case(label, x=x, weight=weight, bias=normal(rng, dtype, x.shape[-1]), eps=eps)
    # A mean far from zero cancels E[x^2] - E[x]^2, which is why that formula is wrong.
    shifted = (1000 + normal(rng, DType.FP32, 4, 96, scale=4.0)).astype(dtype.numpy)
    weight, bias = normal(rng, dtype, 96), normal(rng, dtype, 96)
    yield Case("shifted", x=shifted, weight=weight, bias=bias, eps=1e-5)


def _layer_norm_magnitude(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, ...]:
    wide = np.abs(f64(x))
    centred = np.abs(f64(x) - f64(x).mean(axis=-1, keepdims=True))
    scale = 1 / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps)
    # Rounding the mean moves every centred value by u * (|x| + mean |x|), and so the variance.
    moved = wide + wide.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * moved, axis=-1, keepdims=True) * scale**2
    terms = scale * (moved + centred * (1 + variance))
    return (terms * np.abs(f64(weight)) + np.abs(f64(bias)),)


@declare(
    args={"x": Arg("... d"), "weight": Arg("d"), "bias": Arg("d")},
    returns=(Arg("... d"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.LAYERNORM,
    inputs=_layer_norm_cases,
    statics=_EPS,
    aliases=("layernorm",),
    magnitude=_layer_norm_magnitude,
    positive_sum="d",
)
def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis.

    The variance divides by the number of elements and is that of the centred values, summed in fp32
    or better. Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    wide = f64(x)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    result: Array = centred / np.sqrt(variance + eps) * f64(weight) + f64(bias)
    return result
