"""Checks of arguments, shared by every public method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sagellm_backend.errors import InvalidArgumentError

MAX_BYTES = 1 << 62
"""No request may exceed this; it keeps sizes clear of the 64-bit edge."""

T = TypeVar("T")


def check_int(name: str, value: Any, *, low: int = 1, high: int = MAX_BYTES) -> int:
    """``value`` as an ``int`` within ``low..high``; booleans and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidArgumentError(
            f"{name} must be an integer, not {value!r} of type {type(value).__name__}."
        )
    number = int(value)
    if not low <= number <= high:
        raise InvalidArgumentError(
            f"{name} must lie within {low:,} and {high:,}, not {number:,}.",
            value=number,
            low=low,
            high=high,
        )
    return number


def check_seconds(name: str, value: Any) -> float:
    """``value`` as a finite positive number of seconds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgumentError(f"{name} must be a number of seconds, not {value!r}.")
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgumentError(f"{name} must be finite and above 0, not {seconds}.")
    return seconds


def check_choice(name: str, value: T, choices: Sequence[T]) -> T:
    """``value`` if it is one of ``choices``."""
    if not isinstance(value, type(choices[0])) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InvalidArgumentError(f"{name} must be one of {listed}, not {value!r}.")
    return value


def check_type(name: str, value: Any, kind: type[T]) -> T:
    """``value`` if it is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} must be a {kind.__name__}, not {type(value).__name__}.")
    return value


def check_shape(shape: Any, bits: int) -> tuple[int, ...]:
    """``shape`` as a tuple of sizes from 0 up, whose bytes stay below :data:`MAX_BYTES`."""
    sizes = (shape,) if isinstance(shape, Integral) else shape
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Iterable):
        raise InvalidArgumentError(f"shape must be a tuple of integers, not {shape!r}.")
    checked = tuple(check_int("a size in shape", size, low=0) for size in sizes)
    if math.prod(checked) * bits > 8 * MAX_BYTES:
        raise InvalidArgumentError(f"shape {checked} is too large for any memory.")
    return checked


def check_ids(ids: Any, num_blocks: int) -> npt.NDArray[np.int64]:
    """Block ids as a one-dimensional int64 array within ``0..num_blocks - 1``."""
    if isinstance(ids, np.ndarray):
        array = ids
    elif isinstance(ids, (list, tuple, range)):
        array = np.asarray(ids) if len(ids) else np.empty(0, np.int64)
    else:
        raise InvalidArgumentError(
            f"Block ids must be a list or a NumPy array of integers, not {type(ids).__name__}."
        )
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(
            "Block ids must be one-dimensional integers, "
            f"not of shape {array.shape} and type {array.dtype}."
        )
    if array.size and not (array.min() >= 0 and array.max() < num_blocks):
        wrong = array[(array < 0) | (array >= num_blocks)][0]
        raise InvalidArgumentError(
            f"Block {wrong} does not exist: this pool has blocks 0 to {num_blocks - 1}.",
            block=int(wrong),
            num_blocks=num_blocks,
        )
    return array.astype(np.int64, copy=False)
