"""Calls of operations that the suite makes: good ones, and those that must be refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.operations import judge, to_native
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.ops import OPERATIONS, Operation
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.ops.cases import Case

Arguments = Mapping[str, Any]

_JUNK = ("x", [1.0], object())
_BAD_STATICS = (float("nan"), float("inf"), -1, 0, 2.5, True, None, "junk", object())
_OTHER_DTYPES = (*FLOATING, DType.INT8, DType.INT32, DType.INT64)


@dataclass(frozen=True)
class Claim:
    """An operation in a dtype that it is declared for."""

    operation: Operation
    dtype: DType

    @property
    def label(self) -> str:
        """How the claim stands in the id of a case."""
        return f"{self.operation.name}-{self.dtype.value}"


def claims(capability: CapabilityDescriptor) -> tuple[Claim, ...]:
    """Every operation of the table in every dtype that is declared for it."""
    return tuple(
        Claim(OPERATIONS[name], dtype)
        for name, dtypes in capability.operations.items()
        if name in OPERATIONS
        for dtype in dtypes
    )


def operations(capability: CapabilityDescriptor) -> tuple[Operation, ...]:
    """Every operation of the table that is declared."""
    return tuple(dict.fromkeys(claim.operation for claim in claims(capability)))


@cache
def labels(operation: Operation) -> tuple[str, ...]:
    """The labels of the operation's generated cases, which are the same for every dtype."""
    found = operation.inputs(np.random.default_rng(0), DType.FP32)
    return tuple(item.label for item in found)


def compare(exam: Exam, operation: Operation) -> None:
    """Hold the generated case ``exam["case"]`` in ``exam["dtype"]`` against the reference.

    A provider may refuse it beforehand by a CapabilityError when the kernel is resolved.
    """
    dtype = exam["dtype"]
    found = next(item for item in operation.inputs(exam.rng, dtype) if item.label == exam["case"])
    judged(exam, operation, operation.bind((), found), dtype, exact=found.exact)


def judged(
    exam: Exam, operation: Operation, arguments: Arguments, dtype: DType, *, exact: bool = False
) -> None:
    """Run the provider's kernel on host ``arguments`` and fail unless it is near enough."""
    try:
        kernel = exam.provider.get_kernel(operation.name, **operation.statics_of(arguments))
    except CapabilityError:
        exam.measure("refused", 1)
        return
    flushes = dtype in exam.capability.flush_subnormals
    found = judge(exam.provider, operation, kernel, arguments, dtype, exact=exact, flushes=flushes)
    for name in ("r_max", "r_rms", "bound"):
        value = getattr(found, name)
        if np.isfinite(value):
            exam.measure(name, value)
    exam.check(
        found.passed,
        f"{operation.name}: ratio {found.r_max:.3g} (rms {found.r_rms:.3g}), allowed "
        f"{found.bound:.3g} ({found.rms_bound:.3g}): {found.detail}.",
    )


def small_cases(exam: Exam, operation: Operation, dtype: DType) -> list[dict[str, Any]]:
    """Arguments of the smallest generated cases without an empty or absent array, one per mode."""
    cases = list(operation.inputs(exam.rng, dtype))
    full = [item for item in cases if _is_full(operation, item)] or cases
    by_mode: dict[Any, dict[str, Any]] = {}
    for item in sorted(full, key=_size):
        arguments = operation.bind((), item)
        metadata = arguments.get("metadata")
        by_mode.setdefault(metadata.mode if metadata else None, arguments)
    return list(by_mode.values())


def native_call(exam: Exam, arguments: Arguments) -> dict[str, Any]:
    """Host arguments as the provider's own."""
    return {name: to_native(exam.provider, value) for name, value in arguments.items()}


def results(exam: Exam, operation: Operation, arguments: Arguments) -> list[Any]:
    """Outputs, and then mutated arguments, of one call with the provider's arrays, as NumPy."""
    kernel = exam.provider.get_kernel(operation.name, **operation.statics_of(arguments))
    given = kernel(**arguments)
    outputs = given if isinstance(given, tuple) else (given,) * len(operation.returns)
    mutated = [arguments[name] for name in operation.mutates]
    return [exam.provider.to_numpy(array) for array in (*outputs, *mutated)]


def bad_statics(operation: Operation, name: str) -> Iterator[Any]:
    """Values that the static argument of this name must not have."""
    rule = operation.statics[name].rule
    return (value for value in _BAD_STATICS if rule(value) is not None)


def misuses(
    operation: Operation, arguments: Arguments, capability: CapabilityDescriptor
) -> Iterator[tuple[str, Any]]:
    """(name, value) of one argument that, put into the host ``arguments``, the table refuses.

    Arrays are of dtypes that the backend can have arrays of.
    """
    floating = set(capability.supported_dtypes)
    others = [item for item in _OTHER_DTYPES if item in floating or not item.is_floating]
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            spoilt: Iterator[Any] = _spoilt_arrays(value, others)
        elif isinstance(value, AttentionMetadata):
            spoilt = iter([None, "x", AttentionMetadata.build([3, 1, 5, 2, 7])])
        elif name in operation.statics:
            spoilt = bad_statics(operation, name)
        else:
            spoilt = iter(_JUNK)
        for item in spoilt:
            if _is_refused(operation, {**arguments, name: item}):
                yield name, item


def _spoilt_arrays(array: Any, others: Sequence[DType]) -> Iterator[Any]:
    """Wrong types, ranks, sizes and dtypes."""
    yield from (None, *_JUNK, array[None], array[..., None], array.reshape(-1)[0])
    for axis in range(array.ndim):
        yield np.repeat(array, 2, axis=axis)
        yield np.take(array, np.arange(0), axis=axis)
        yield np.concatenate([array, np.take(array, [0], axis=axis)], axis=axis)
    for dtype in others:
        if dtype is not dtype_of(array):
            yield np.zeros(array.shape, dtype.numpy)


def _is_refused(operation: Operation, arguments: Arguments) -> bool:
    try:
        operation.check(arguments)
    except InvalidArgumentError:
        return True
    return False


def _is_full(operation: Operation, found: Case) -> bool:
    arrays = [found.get(name) for name in operation.args]
    return all(isinstance(item, np.ndarray) and item.size > 1 for item in arrays)


def _size(found: Case) -> int:
    return sum(item.nbytes for item in found.values() if isinstance(item, np.ndarray))
