"""Activations: silu_and_mul, gelu, softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Array, Case, f64, normal
from sagellm_backend.ops.statics import Static, choice
from sagellm_backend.ops.table import declare

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _silu_and_mul_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, shape in {"one": (1, 2), "row": (1, 256), "odd": (5, 66), "3d": (2, 3, 64)}.items():
        yield Case(label, x=normal(rng, dtype, *shape))
    yield Case("large", x=normal(rng, dtype, 4, 128, scale=50.0, limit=200))
    steps = np.concatenate([np.linspace(-100, 100, 201), np.ones(201)])
    yield Case("gates", x=steps[None].astype(dtype.numpy))
    yield Case("zeros", x=np.zeros((2, 16), dtype.numpy))
    yield Case("empty", x=np.zeros((0, 16), dtype.numpy))


def _silu_and_mul_magnitude(x: Array) -> tuple[Array, ...]:
    gate, up = np.split(np.abs(f64(x)), 2, axis=-1)
    # What silu(gate) may lose before up multiplies it, in units of 2**-24: exp() overflows fp32 at
    # 88.7, so below 2**-120 all; and a kernel that rounds it to fp16, half of a subnormal step.
    lost = 0.5 if dtype_of(x) is DType.FP16 else 2.0**-96
    return (np.abs(silu_and_mul(x)) * (1 + gate) + up * lost,)


@declare(
    args={"x": Arg("... 2*d")},
    returns=(Arg("... d"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.FUSION,
    inputs=_silu_and_mul_cases,
    magnitude=_silu_and_mul_magnitude,
)
def silu_and_mul(x: Array) -> Array:
    """``silu(gate) * up``, where the gate is the first half of the last axis and up the second.

    ``silu(g) = g / (1 + exp(-g))``. Shazeer, "GLU Variants Improve Transformer", 2020 (SwiGLU).
    """
    gate, up = np.split(f64(x), 2, axis=-1)
    result: Array = gate / (1 + np.exp(-gate)) * up
    return result


def _gelu_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for approximate in ("none", "tanh"):
        for label, shape in {"one": (1,), "odd": (3, 65), "3d": (2, 2, 32)}.items():
            yield Case(
                f"{label}-{approximate}", x=normal(rng, dtype, *shape), approximate=approximate
            )
        steps = np.linspace(-12, 12, 241).astype(dtype.numpy)
        yield Case(f"range-{approximate}", x=steps, approximate=approximate)
        ends = np.array([[-300, -20, 0, 20, 300]], dtype.numpy)
        yield Case(f"large-{approximate}", x=ends, approximate=approximate)


def _gelu_magnitude(x: Array, approximate: str = "none") -> tuple[Array, ...]:
    del approximate
    return (np.abs(f64(x)),)


@declare(
    args={"x": Arg("...")},
    returns=(Arg("..."),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.FUSION,
    inputs=_gelu_cases,
    statics={"approximate": Static(choice("none", "tanh"))},
    magnitude=_gelu_magnitude,
)
def gelu(x: Array, approximate: str = "none") -> Array:
    """``x * Phi(x)`` with the normal distribution function, or its tanh approximation.

    ``tanh``: ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``. Hendrycks and Gimpel,
    "Gaussian Error Linear Units", 2016.
    """
    wide = f64(x)
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        tanh: Array = wide / 2 * (1 + np.tanh(inner))
        return tanh
    # erfc keeps the digits that 1 + erf(x) loses for negative x.
    result: Array = wide / 2 * _erfc(-wide / math.sqrt(2))
    return result


def _softmax_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    shapes = {"one": (1, 1), "row": (1, 100), "odd": (5, 257), "3d": (2, 3, 64), "wide": (2, 5000)}
    for label, shape in shapes.items():
        yield Case(label, x=normal(rng, dtype, *shape, scale=3.0))
    yield Case("logits", x=normal(rng, dtype, 6, 300, scale=5000.0, limit=10000))
    yield Case("equal", x=np.full((3, 77), 10000, dtype.numpy))
    yield Case("empty", x=np.zeros((0, 8), dtype.numpy))
    masked = normal(rng, dtype, 4, 64)
    masked[:, 40:] = -np.inf
    yield Case("masked", x=masked)


def _softmax_magnitude(x: Array) -> tuple[Array, ...]:
    wide = f64(x)
    below = wide.max(axis=-1, keepdims=True, initial=-np.inf) - wide
    found = softmax(x)
    # exp() of a logit d below the highest is off by d * u, and so is its share of the sum.
    weighted = np.where(found > 0, found * np.where(found > 0, below, 0), 0)
    return (2 * found + weighted + found * weighted.sum(axis=-1, keepdims=True),)


@declare(
    args={"x": Arg("... d")},
    returns=(Arg("... d"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.SOFTMAX,
    inputs=_softmax_cases,
    magnitude=_softmax_magnitude,
    positive_sum="d",
)
def softmax(x: Array) -> Array:
    """``exp(x - max(x))`` divided by its sum, over the last axis, in fp32 or better.

    ``-inf`` gives 0; a row of nothing else is undefined.
    """
    wide = f64(x)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True, initial=-np.inf))
    result: Array = powers / powers.sum(axis=-1, keepdims=True)
    return result
