"""What goes into an operation and comes out: shapes, dtypes, accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from sagellm_backend.dtypes import DType

FLOATING = (DType.FP32, DType.FP16, DType.BF16)
"""The dtypes that an operation may be computed in: the values of ``T``."""

_DTYPES: dict[str, tuple[DType, ...]] = {
    "T": FLOATING,
    "fp32": (DType.FP32,),
    "index": (DType.INT32, DType.INT64),
    "int64": (DType.INT64,),
    "int8": (DType.INT8,),
}


class Accuracy(str, Enum):
    """How near to the float64 reference an implementation must come.

    ``exact``: the same bits. ``rounded``: within 1 unit in the last place. ``accumulated``: within
    the error of fp32 accumulation and one final rounding. ``statistical``: a random draw, judged by
    the interval of probability that it belongs to.
    """

    EXACT = "exact"
    ROUNDED = "rounded"
    ACCUMULATED = "accumulated"
    STATISTICAL = "statistical"


@dataclass(frozen=True)
class Arg:
    """An array that goes in or comes out.

    ``dtype`` is ``T`` (the floating dtype of the call, one for all ``T`` arrays), ``fp32``,
    ``index`` (int32 or int64), ``int64`` or ``int8``. An ``optional`` array may be ``None``.
    ``accuracy`` replaces the operation's for this output.
    """

    spec: str
    dtype: Literal["T", "fp32", "index", "int64", "int8"] = "T"
    optional: bool = False
    accuracy: Accuracy | None = None

    @property
    def dtypes(self) -> tuple[DType, ...]:
        """The dtypes that the array may have."""
        return _DTYPES[self.dtype]
