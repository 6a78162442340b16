"""Cases: arguments of one call that the suite makes, and the arrays in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.dtypes import DType

Array = np.ndarray[Any, Any]


class Case(dict[str, Any]):
    """Keyword arguments of one call, under a label that is stable between runs.

    An ``exact`` case has data whose sums are exact in fp32 in any order, so that the result must be
    the reference's, bit for bit.
    """

    def __init__(self, label: str, *, exact: bool = False, **arguments: Any) -> None:
        super().__init__(arguments)
        self.label = label
        self.exact = exact


def normal(
    rng: np.random.Generator,
    dtype: DType,
    *shape: int,
    scale: float = 1.0,
    limit: float = np.inf,
) -> Array:
    """Zero-mean normal numbers, cut off at ``limit``, in the storage dtype."""
    return (rng.standard_normal(shape) * scale).clip(-limit, limit).astype(dtype.numpy)


def integers(rng: np.random.Generator, dtype: DType, *shape: int, limit: int = 7) -> Array:
    """Whole numbers from -limit to limit in the storage dtype."""
    return rng.integers(-limit, limit + 1, shape).astype(dtype.numpy)


def f64(array: Any) -> Array:
    """The array in float64, in which every storage dtype is exact."""
    return np.asarray(array).astype(np.float64)
