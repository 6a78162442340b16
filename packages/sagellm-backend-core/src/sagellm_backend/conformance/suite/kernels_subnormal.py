"""Kernels: numbers below the smallest normal one are kept, or taken for zero where that is declared."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.accuracy import ratio
from sagellm_backend.conformance.calls import Claim, claims, native_call, results
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.subnormals import RECIPES
from sagellm_backend.dtypes import dtype_of
from sagellm_backend.errors import CapabilityError
from sagellm_backend.ops.args import Accuracy


def _claims(capability: CapabilityDescriptor) -> tuple[Claim, ...]:
    return tuple(item for item in claims(capability) if item.operation.name in RECIPES)


@case("kernels", params={"claim": _claims})
def subnormals_are_kept_or_declared(exam: Exam) -> None:
    """Subnormal numbers are computed with; where their flush is declared, the result may be zero.

    It is then the right one or zero, and what is moved but not computed keeps its bits. How many
    are flushed is measured. Kills an undeclared flush, of operands or of results; a flush to the
    smallest normal number; and data that are moved by arithmetic.
    """
    operation, dtype = exam["claim"].operation, exam["claim"].dtype
    forgiven = (
        dtype in exam.capability.flush_subnormals and operation.accuracy is not Accuracy.EXACT
    )
    flushed = total = 0
    for made in RECIPES[operation.name](exam.rng, dtype):
        arguments = operation.bind((), made)
        try:
            got = results(exam, operation, native_call(exam, arguments))
        except CapabilityError:
            exam.measure("refused", 1)
            continue
        wanted = operation.exact_results(arguments)
        zeros = [_flushed(*pair) for pair in zip(got, wanted, strict=True)]
        flushed, total = flushed + sum(item.sum() for item in zeros), total + sum(map(np.size, got))
        if forgiven:
            got = [
                np.where(zero, right.astype(array.dtype), array)
                for array, right, zero in zip(got, wanted, zeros, strict=True)
            ]
        found = ratio(operation, arguments, got, dtype)
        exam.check(
            found.passed,
            f"{operation.name}: {flushed} of {total} are flushed to zero, {_said(forgiven)}; "
            f"ratio {found.r_max:.3g}, allowed {found.bound:.3g}: {found.detail}.",
        )
    exam.measure("flushed", flushed)


def _flushed(got: Any, wanted: Any) -> Any:
    """Where zero came for what is not zero in the dtype."""
    if (
        not isinstance(got, np.ndarray)
        or got.shape != wanted.shape
        or not dtype_of(got).is_floating
    ):
        return np.zeros(np.shape(wanted), bool)
    return (got == 0) & (wanted.astype(got.dtype) != 0)


def _said(forgiven: bool) -> str:
    return "which is declared" if forgiven else "which is not declared for this dtype"
