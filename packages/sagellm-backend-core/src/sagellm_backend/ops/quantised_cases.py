"""Cases of the operations over quantised weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sagellm_backend.dtypes import DType
from sagellm_backend.ops.cases import Array, Case, integers, normal

_SHAPES = {"one": (1, 1, 1), "row": (1, 64, 48), "odd": (7, 129, 33), "deep": (16, 4096, 24)}


def _bytes(rng: np.random.Generator, *shape: int) -> Array:
    """Every value of int8, alike often."""
    return rng.integers(-128, 128, shape).astype(np.int8)


def _scales(rng: np.random.Generator, *shape: int, inner: int, largest: int = 128) -> Array:
    """Scales of either sign by which results come near 1; neighbours differ up to sixteenfold."""
    size = 2.0 ** rng.uniform(-2, 2, shape) / (largest * inner**0.5)
    return np.asarray(size * rng.choice([-1, 1], shape)).astype(np.float32)


def _int8_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, (rows, inner, outer) in _SHAPES.items():
        weight, scale = _bytes(rng, outer, inner), _scales(rng, outer, inner=inner)
        yield Case(label, x=normal(rng, dtype, rows, inner), weight=weight, scale=scale, bias=None)
    weight, scale = _bytes(rng, 24, 40), _scales(rng, 24, inner=40)
    bias = normal(rng, dtype, 24)
    yield Case("bias-3d", x=normal(rng, dtype, 2, 3, 40), weight=weight, scale=scale, bias=bias)
    yield Case("empty", x=normal(rng, dtype, 0, 40), weight=weight, scale=scale, bias=None)
    silent = np.where(np.arange(24) % 3, scale, np.float32(0))
    yield Case("zero-scales", x=normal(rng, dtype, 4, 40), weight=weight, scale=silent, bias=bias)
    edges = rng.choice([-128, 127], (9, 2048)).astype(np.int8)
    edges[0], edges[1] = -128, 127
    # Of few values the roundings would not be independent: these need none.
    scale = (2.0 ** rng.integers(-14, -10, 9)).astype(np.float32)
    # Terms of one sign reach what no narrow sum holds.
    x = np.abs(normal(rng, dtype, 3, 2048))
    yield Case("extremes", x=x, weight=edges, scale=scale, bias=None)
    x = normal(rng, dtype, 5, 576)
    x[:, 17] *= 200
    weight, scale = _bytes(rng, 48, 576), _scales(rng, 48, inner=576)
    yield Case("outlier", x=x, weight=weight, scale=scale, bias=None)


def w8a16_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    yield from _int8_cases(rng, dtype)
    yield Case(
        "integers",
        exact=True,
        x=integers(rng, dtype, 8, 2048),
        weight=_bytes(rng, 16, 2048),
        scale=(2.0 ** rng.integers(-6, -2, 16)).astype(np.float32),
        bias=integers(rng, dtype, 16),
    )


def w8a8_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    yield from _int8_cases(rng, dtype)
    weight, scale = _bytes(rng, 48, 96), _scales(rng, 48, inner=96)
    sizes = (2.0 ** np.arange(-6, 6)).astype(dtype.numpy)[:, None]
    rows = normal(rng, dtype, 12, 96, limit=4) * sizes
    yield Case("sizes", x=rows, weight=weight, scale=scale, bias=None)
    bias = normal(rng, dtype, 48)
    some = np.where(np.arange(12)[:, None] % 2, rows, np.zeros((), dtype.numpy))
    yield Case("zero-rows", x=some, weight=weight, scale=scale, bias=bias)
    power = (2.0 ** rng.integers(-9, -6, 16)).astype(np.float32)
    weight = _bytes(rng, 16, 512)
    whole = integers(rng, dtype, 8, 512, limit=126)
    # The largest number of a row makes its scale 1.
    whole[:, 5] = 127
    yield Case("integers", exact=True, x=whole, weight=weight, scale=power, bias=None)
    ties = (rng.integers(-126, 126, (8, 512)) + 0.5).astype(dtype.numpy)
    ties[:, 5] = -127
    yield Case("ties", exact=True, x=ties, weight=weight, scale=power, bias=None)


def w4a16_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    shapes = {
        "one": (1, 2, 1, 1),
        "row": (1, 64, 48, 2),
        "odd": (7, 90, 33, 5),
        "one-group": (3, 130, 17, 1),
        "pairs": (2, 24, 9, 12),
        "deep": (16, 4096, 24, 32),
    }
    for label, (rows, inner, outer, groups) in shapes.items():
        yield _int4_case(rng, dtype, label, (rows,), inner, outer, groups)
    zero = rng.integers(0, 16, (24, 5)).astype(np.int8)
    bias = normal(rng, dtype, 24)
    yield _int4_case(rng, dtype, "bias-3d", (2, 3), 40, 24, 5, zero=zero, bias=bias)
    yield _int4_case(rng, dtype, "empty", (0,), 40, 24, 5)
    edges = rng.choice([0, 15], (24, 8)).astype(np.int8)
    yield _int4_case(rng, dtype, "zero-edges", (3,), 256, 24, 8, zero=edges)
    nothing = _int4_case(rng, dtype, "all-zero", (3,), 64, 16, 4)
    nothing["weight"][:] = -120  # both codes are 8
    yield nothing
    exact = _int4_case(rng, dtype, "integers", (8,), 2048, 16, 16)
    exact.exact = True
    exact["x"] = integers(rng, dtype, 8, 2048)
    exact["scale"] = (2.0 ** rng.integers(-3, 1, (16, 16))).astype(np.float32)
    exact["zero"] = rng.integers(0, 16, (16, 16)).astype(np.int8)
    exact["bias"] = integers(rng, dtype, 16)
    yield exact


def _int4_case(
    rng: np.random.Generator,
    dtype: DType,
    label: str,
    rows: tuple[int, ...],
    inner: int,
    outer: int,
    groups: int,
    zero: Array | None = None,
    bias: Array | None = None,
) -> Case:
    return Case(
        label,
        x=normal(rng, dtype, *rows, inner),
        weight=_bytes(rng, outer, inner // 2),
        scale=_scales(rng, outer, groups, inner=inner, largest=8),
        zero=zero,
        bias=bias,
    )
