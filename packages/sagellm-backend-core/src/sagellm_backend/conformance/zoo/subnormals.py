"""What becomes of subnormal numbers: honest flushes, and those that nobody was told of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.subnormals import RECIPES, smallest_normal
from sagellm_backend.conformance.zoo.member import honest, kernel_fault, member, with_kernels
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.args import Accuracy
from sagellm_backend.ops.cases import Array
from sagellm_backend.ops.linear import embedding, linear
from sagellm_backend.reference.provider import ReferenceProvider

_CASE = ("kernels.subnormals_are_kept_or_declared",)
_LIMIT = smallest_normal(DType.FP32)
Reference = Callable[..., Any]


def _to_zero(values: Array) -> Array:
    return np.where(np.abs(values) < _LIMIT, 0.0, values)


def _to_smallest(values: Array) -> Array:
    return np.where((values != 0) & (np.abs(values) < _LIMIT), np.copysign(_LIMIT, values), values)


def _through(change: Callable[[Array], Array], reference: Reference) -> Reference:
    """The reference, with its results changed before they are rounded."""

    def compute(*args: Any, **kwargs: Any) -> Any:
        result = reference(*args, **kwargs)
        return tuple(map(change, result)) if isinstance(result, tuple) else change(result)

    compute.__wrapped__ = reference  # type: ignore[attr-defined]
    return compute


def _computing(change: Callable[[Array], Array]) -> type[ReferenceProvider]:
    computed = [name for name in RECIPES if OPERATIONS[name].accuracy is not Accuracy.EXACT]
    return with_kernels({name: _through(change, OPERATIONS[name].reference) for name in computed})


class _Declares(ReferenceProvider):
    """It says that it flushes what has the exponents of fp32."""

    def _capability(self) -> CapabilityDescriptor:
        return replace(super()._capability(), flush_subnormals=(DType.FP32, DType.BF16))


@honest("It flushes subnormal results to zero, and says so", profiles=("kernels", "attention"))
class FlushesSubnormals(_Declares, _computing(_to_zero)):  # type: ignore[misc]
    pass


@honest("It may flush subnormal numbers, and does not", profiles=("kernels",))
class KeepsWhatItMayFlush(_Declares):
    pass


@member("kernels", "Subnormal results are flushed to zero, and nobody was told", kills=_CASE)
class FlushesInSilence(_computing(_to_zero)):  # type: ignore[misc]
    pass


@member(
    "kernels",
    "Subnormal results become the smallest normal number, with a declared flush",
    kills=_CASE,
)
class FlushesUpwards(_Declares, _computing(_to_smallest)):  # type: ignore[misc]
    pass


@member(
    "kernels", "An embedding flushes rows that it only moves, with a declared flush", kills=_CASE
)
class EmbeddingFlushes(
    _Declares,
    with_kernels({"embedding": _through(_to_zero, embedding)}),  # type: ignore[misc]
):
    pass


@kernel_fault("linear", "A linear takes subnormal operands for zero", kills=_CASE)
def linear_drops_subnormal_operands(x: Array, weight: Array, bias: Array | None = None) -> Array:
    def kept(array: Array) -> Array:
        return np.where(np.abs(array) < smallest_normal(dtype_of(array)), 0, array)

    return linear(kept(x), kept(weight), bias)
