"""Linear algebra: linear, matmul, embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.dtypes import DType
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Array, Case, f64, integers, normal
from sagellm_backend.ops.table import Arguments, declare


def _linear_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    shapes = {"one": (1, 1, 1), "row": (1, 64, 48), "odd": (7, 129, 33), "deep": (16, 4096, 24)}
    for label, (rows, inner, outer) in shapes.items():
        weight = normal(rng, dtype, outer, inner, scale=inner**-0.5)
        yield Case(label, x=normal(rng, dtype, rows, inner), weight=weight, bias=None)
    yield Case(
        "bias-3d",
        x=normal(rng, dtype, 2, 3, 40),
        weight=normal(rng, dtype, 24, 40),
        bias=normal(rng, dtype, 24),
    )
    yield Case("empty", x=normal(rng, dtype, 0, 40), weight=normal(rng, dtype, 24, 40), bias=None)
    yield Case(
        "integers",
        exact=True,
        x=integers(rng, dtype, 8, 4096),
        weight=integers(rng, dtype, 16, 4096, limit=1),
        bias=integers(rng, dtype, 16),
    )


def _linear_magnitude(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, ...]:
    terms = np.abs(f64(x)) @ np.abs(f64(weight)).T
    return (terms if bias is None else terms + np.abs(f64(bias)),)


@declare(
    args={"x": Arg("... i"), "weight": Arg("o i"), "bias": Arg("o", optional=True)},
    returns=(Arg("... o"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.MATMUL,
    inputs=_linear_cases,
    magnitude=_linear_magnitude,
)
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """``x @ weight.T + bias``: the weight has one row per output feature.

    Products are accumulated in fp32 or better, the bias is added there, and the sum is rounded to
    the dtype once.
    """
    product: Array = f64(x) @ f64(weight).T
    return product if bias is None else product + f64(bias)


def _matmul_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    shapes: dict[str, tuple[tuple[int, ...], int, int, int]] = {
        "one": ((), 1, 1, 1),
        "odd": ((), 5, 257, 3),
        "batch": ((3,), 4, 32, 5),
        "batches": ((2, 3), 1, 65, 17),
        "deep": ((), 8, 4096, 8),
    }
    for label, (lead, rows, inner, columns) in shapes.items():
        a, b = normal(rng, dtype, *lead, rows, inner), normal(rng, dtype, *lead, inner, columns)
        yield Case(label, a=a, b=b)
    yield Case(
        "integers",
        exact=True,
        a=integers(rng, dtype, 2, 8, 2048),
        b=integers(rng, dtype, 2, 2048, 8, limit=1),
    )


def _matmul_magnitude(a: Array, b: Array) -> tuple[Array, ...]:
    return (np.abs(f64(a)) @ np.abs(f64(b)),)


@declare(
    args={"a": Arg("... m k"), "b": Arg("... k n")},
    returns=(Arg("... m n"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.MATMUL,
    inputs=_matmul_cases,
    magnitude=_matmul_magnitude,
)
def matmul(a: Array, b: Array) -> Array:
    """``a @ b``, matrix by matrix: leading sizes are equal, nothing is broadcast.

    Products are accumulated in fp32 or better and rounded to the dtype once.
    """
    product: Array = f64(a) @ f64(b)
    return product


def _embedding_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    table = normal(rng, dtype, 37, 24)
    yield Case("one", ids=np.array([36], np.int64), table=table)
    yield Case("scalar", ids=np.array(0, np.int64), table=table)
    yield Case("batch", ids=rng.integers(0, 37, (3, 5)).astype(np.int32), table=table)
    yield Case("empty", ids=np.empty(0, np.int64), table=table)
    yield Case("repeated", ids=np.full(9, 4, np.int64), table=table)


def _embedding_data(arguments: Arguments) -> str | None:
    ids, rows = arguments["ids"], len(arguments["table"])
    bad: Any = ids[(ids < 0) | (ids >= rows)]
    return f"ids holds {int(bad.flat[0])}, the table has rows 0 to {rows - 1}" if bad.size else None


@declare(
    args={"ids": Arg("...", "index"), "table": Arg("v h")},
    returns=(Arg("... h"),),
    accuracy=Accuracy.EXACT,
    kind=KernelKind.FUSION,
    inputs=_embedding_cases,
    inspect_data=_embedding_data,
)
def embedding(ids: Array, table: Array) -> Array:
    """The rows of ``table`` at ``ids``, bit for bit.

    Ids outside of the table are not refused on the device: the result is undefined.
    """
    return f64(table[ids])
