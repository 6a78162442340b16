"""Checks of arguments, shared by every public method."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sagellm_backend.errors import InvalidArgumentError

MAX_BYTES = 1 << 62
"""No request may exceed this; it keeps sizes clear of the 64-bit edge."""

MAX_DIMS = 32
"""No array may have more dimensions: NumPy 1 stops there."""

_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)

T = TypeVar("T")

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def shown(value: Any) -> str:
    """``repr(value)`` for a message: short, at once, and never failing."""
    try:
        return _repr.repr(value)
    except Exception:  # noqa: BLE001 - integers of more than 4300 digits, and foreign __repr__
        return f"a {type(value).__name__} that has no text"


def check_int(name: str, value: Any, *, low: int = 1, high: int = MAX_BYTES) -> int:
    """``value`` as an ``int`` within ``low..high``; booleans and floats are refused."""
    # The type first: to ask an abstract class costs more than all the rest.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise InvalidArgumentError(
            f"{name} must be an integer, not {shown(value)} of type {type(value).__name__}."
        )
    number = int(value)
    if not low <= number <= high:
        raise InvalidArgumentError(
            f"{name} must lie within {low:,} and {high:,}, not {shown(number)}.",
            value=number,
            low=low,
            high=high,
        )
    return number


def check_seconds(name: str, value: Any) -> float:
    """``value`` as a finite positive number of seconds."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgumentError(f"{name} must be a number of seconds, not {shown(value)}.")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgumentError(f"{name} must be finite and above 0, not {seconds}.")
    return seconds


def check_choice(name: str, value: T, choices: Sequence[T]) -> T:
    """``value`` if it is one of ``choices``."""
    if not isinstance(value, type(choices[0])) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InvalidArgumentError(f"{name} must be one of {listed}, not {shown(value)}.")
    return value


def check_type(name: str, value: Any, kind: type[T]) -> T:
    """``value`` if it is an instance of ``kind``."""
    if not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} must be a {kind.__name__}, not {type(value).__name__}.")
    return value


def check_shape(shape: Any, bits: int) -> tuple[int, ...]:
    """``shape``, an integer or a list or tuple of sizes from 0 up, as a tuple.

    It has at most :data:`MAX_DIMS` sizes, and its bytes stay below :data:`MAX_BYTES`. So do those
    of its sizes above 0, since frameworks compute the strides of empty arrays too.
    """
    sizes = (shape,) if isinstance(shape, Integral) else shape
    if not isinstance(sizes, (list, tuple)):
        raise InvalidArgumentError(f"shape must be a tuple of integers, not {shown(shape)}.")
    if len(sizes) > MAX_DIMS:
        raise InvalidArgumentError(
            f"shape has {len(sizes)} dimensions, the limit is {MAX_DIMS}.",
            dimensions=len(sizes),
            limit=MAX_DIMS,
        )
    checked = tuple(check_int("a size in shape", size, low=0) for size in sizes)
    if math.prod(size or 1 for size in checked) * bits > 8 * MAX_BYTES:
        raise InvalidArgumentError(f"shape {checked} is too large for any memory.")
    return checked


def check_ids(ids: Any, num_blocks: int) -> npt.NDArray[np.int64]:
    """Block ids as a one-dimensional int64 array within ``0..num_blocks - 1``.

    ``ids`` is a list, tuple, range or NumPy array of integers.
    """
    array = ids if type(ids) is np.ndarray else _id_array(ids, num_blocks)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(
            "Block ids must be one-dimensional integers, "
            f"not of shape {array.shape} and type {array.dtype}."
        )
    wide = array.astype(_INT64, copy=False)
    # Taken as unsigned, numbers below zero are the largest; and of the ways to find the largest in
    # a few hundred, argmax() costs a fourth of max().
    unsigned = wide.view(_UINT64)
    if wide.size and unsigned.item(unsigned.argmax()) >= num_blocks:
        raise _no_block(array[(array < 0) | (array >= num_blocks)][0], num_blocks)
    return wide


def _id_array(ids: Any, num_blocks: int) -> npt.NDArray[Any]:
    if isinstance(ids, np.ndarray):
        return np.asarray(ids)
    if isinstance(ids, range):
        # Looked at before it is written out: a range can be longer than any memory.
        for edge in (ids[:1], ids[-1:]):
            if edge and not 0 <= edge[0] < num_blocks:
                raise _no_block(edge[0], num_blocks)
        return np.array(ids, np.int64)
    if not isinstance(ids, (list, tuple)):
        raise InvalidArgumentError(
            f"Block ids must be a list or a NumPy array of integers, not {type(ids).__name__}."
        )
    # NumPy takes True for 1, and a list without elements for floats.
    if not {bool, np.bool_}.isdisjoint(map(type, ids)):
        raise InvalidArgumentError(f"Block ids must be integers, not {shown(ids)}.")
    try:
        return np.array(ids) if ids else np.empty(0, np.int64)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"Block ids must be integers: {error}.") from error


def _no_block(block: Any, num_blocks: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"Block {shown(int(block))} does not exist: this pool has blocks 0 to {num_blocks - 1}.",
        block=int(block),
        num_blocks=num_blocks,
    )
