"""Data types: the names of Protocol v0.1, and index types beside them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import cache, lru_cache
from typing import Any

import numpy as np

from sagellm_backend.checks import shown
from sagellm_backend.errors import BackendError, InvalidArgumentError


class DType(str, Enum):
    """Element types. The first six are Protocol's; ``int32`` and ``int64`` are ours, for indices.

    Members compare equal to Protocol's own, which are ``str`` enums of the same values. ``fp8`` is
    ``float8_e4m3fn``; ``int4`` holds two elements to the byte.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
    INT32 = "int32"
    INT64 = "int64"

    __hash__ = str.__hash__

    @property
    def bits(self) -> int:
        """Bits of one stored element."""
        return _BITS[self]

    def nbytes(self, elements: int) -> int:
        """Bytes that ``elements`` packed elements take, rounded up."""
        return (elements * _BITS[self] + 7) // 8

    @property
    def is_floating(self) -> bool:
        """Whether this is one of fp32, fp16, bf16, fp8."""
        return self in _FLOATING

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1.0 to the next number: the u of the accuracy bounds."""
        if self not in _FLOATING:
            raise InvalidArgumentError(
                f"{self.value} has no rounding error: it is an integer type."
            )
        return _FLOATING[self]

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype (from ml_dtypes for bf16, fp8 and int4, which is not packed there)."""
        return _numpy_dtype(self)

    @classmethod
    def parse(cls, value: Any) -> DType:
        """The dtype that ``value`` means.

        Accepts a member, Protocol's member, one of our names, and a framework's or NumPy's dtype
        or its name (``torch.bfloat16``, ``"float16"``). Raises :class:`InvalidArgumentError`.
        """
        if isinstance(value, cls):
            return value
        try:
            return _parse(value)
        except BackendError:
            raise
        except Exception:  # noqa: BLE001 - what cannot be hashed or written out is no dtype
            raise _unknown(value) from None


_BITS = {
    DType.FP32: 32,
    DType.FP16: 16,
    DType.BF16: 16,
    DType.FP8: 8,
    DType.INT8: 8,
    DType.INT4: 4,
    DType.INT32: 32,
    DType.INT64: 64,
}
_FLOATING = {DType.FP32: 2.0**-24, DType.FP16: 2.0**-11, DType.BF16: 2.0**-8, DType.FP8: 2.0**-4}
_FRAMEWORK_NAMES = {
    "float32": DType.FP32,
    "float16": DType.FP16,
    "bfloat16": DType.BF16,
    "float8_e4m3fn": DType.FP8,
}


@cache
def _numpy_dtype(dtype: DType) -> np.dtype[Any]:
    import ml_dtypes

    special = {
        DType.FP32: np.float32,
        DType.FP16: np.float16,
        DType.BF16: ml_dtypes.bfloat16,
        DType.FP8: ml_dtypes.float8_e4m3fn,
        DType.INT4: ml_dtypes.int4,
    }
    found: np.dtype[Any] = np.dtype(special.get(dtype, dtype.value))
    return found


@lru_cache(maxsize=256)
def _parse(value: Any) -> DType:
    name = value.value if isinstance(value, Enum) else value
    if isinstance(name, type) and issubclass(name, np.generic):
        name = np.dtype(name)
    if not isinstance(name, str):
        # torch.float32, paddle.float32 and np.dtype all end in the plain name of the type.
        name = str(name).rpartition(".")[2]
    found = _FRAMEWORK_NAMES.get(name)
    if found is not None:
        return found
    try:
        return DType(name)
    except ValueError:
        raise _unknown(value) from None


def _unknown(value: Any) -> InvalidArgumentError:
    known = ", ".join(member.value for member in DType)
    return InvalidArgumentError(f"{shown(value)} is not a data type.", hint=f"Known are {known}.")


def dtype_of(array: Any) -> DType:
    """The dtype of a native array or NumPy array. Raises :class:`InvalidArgumentError`."""
    try:
        dtype = array.dtype
    except AttributeError:
        raise InvalidArgumentError(
            f"An array was expected, not {type(array).__name__}.",
            hint="Make one with backend.from_numpy(...).",
        ) from None
    return DType.parse(dtype)


def parse_dtypes(values: Iterable[Any]) -> tuple[DType, ...]:
    """Every dtype of ``values``, in order and without repetition."""
    return tuple(dict.fromkeys(DType.parse(value) for value in values))
