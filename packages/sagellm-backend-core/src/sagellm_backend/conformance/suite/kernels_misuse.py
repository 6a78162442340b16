"""Kernels: bad calls are refused by our errors, and leave every array as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.calls import (
    Arguments,
    bad_statics,
    misuses,
    native_call,
    operations,
    small_cases,
)
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.operations import to_native
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import BackendError, InvalidArgumentError
from sagellm_backend.ops import Operation


@case("kernels", params={"operation": operations})
def bad_arguments_are_refused(exam: Exam) -> None:
    """None, text, and arrays of a wrong rank, size or dtype are refused by name, one at a time.

    Nothing is changed by it, and the next good call is right. Kills a kernel that broadcasts, that
    promotes a dtype in silence, or that writes before it has looked at everything.
    """
    operation = exam["operation"]
    for arguments in small_cases(exam, operation, _dtype(exam, operation)):
        kernel = exam.provider.get_kernel(operation.name)
        good = native_call(exam, arguments)
        for name, junk in misuses(operation, arguments, exam.capability):
            bad = {**good, name: _native(exam, junk)}
            _refuses(exam, kernel, bad, f"{operation.name} with {name} of {_shown(junk)}")
        _unchanged(exam, arguments, good)


@case("kernels", params={"operation": operations})
def bad_signatures_are_refused(exam: Exam) -> None:
    """A missing argument, and one that the operation does not have, are refused.

    Kills a kernel that swallows what it does not know.
    """
    operation = exam["operation"]
    for arguments in small_cases(exam, operation, _dtype(exam, operation)):
        good = native_call(exam, arguments)
        kernel = exam.provider.get_kernel(operation.name)
        first = next(iter(good))
        missing = {name: value for name, value in good.items() if name != first}
        _refuses_signature(exam, kernel, missing, f"{operation.name} without {first}")
        extra = {**good, "telepathy": 1}
        _refuses_signature(exam, kernel, extra, f"{operation.name} with telepathy=1")
        _unchanged(exam, arguments, good)


@case("kernels", params={"operation": operations})
def foreign_arrays_are_refused(exam: Exam) -> None:
    """A NumPy array where the backend's own is wanted is refused by one of our errors.

    Kills a kernel that computes on the host in silence, and one that lets AttributeError through.
    """
    operation = exam["operation"]
    for arguments in small_cases(exam, operation, _dtype(exam, operation)):
        good = native_call(exam, arguments)
        kernel = exam.provider.get_kernel(operation.name)
        for name in operation.args:
            if isinstance(arguments[name], np.ndarray):
                exam.refuses(BackendError, kernel, **{**good, name: arguments[name]})
        _unchanged(exam, arguments, good)


@case("kernels", params={"operation": operations})
def bad_statics_are_refused(exam: Exam) -> None:
    """An unknown static argument, and a bad value of a known one, find no kernel.

    Kills a provider that resolves a kernel whatever is known of the call.
    """
    operation, provider = exam["operation"], exam.provider
    for call in (provider.get_kernel, provider.supports, provider.explain):
        exam.refuses(InvalidArgumentError, call, operation.name, telepathy=1, says=("telepathy",))
        exam.refuses(InvalidArgumentError, call, operation.name, dtype="fp7", says=("fp7",))
        for name in operation.statics:
            for value in bad_statics(operation, name):
                exam.refuses(
                    InvalidArgumentError, call, operation.name, says=(name,), **{name: value}
                )


def _of_many_arrays(capability: CapabilityDescriptor) -> tuple[Operation, ...]:
    """Operations of more than one array: the others have nothing to disagree with."""
    return tuple(item for item in operations(capability) if len(item.args) > 1)


@case("kernels", devices=2, params={"operation": _of_many_arrays})
def arrays_of_two_devices_are_refused(exam: Exam) -> None:
    """Arrays that lie on two devices are refused by one of our errors.

    Kills a kernel that reads across devices in silence.
    """
    operation, provider = exam["operation"], exam.provider
    other = f"{provider.device_type}:{1 - provider.config.device}"
    for arguments in small_cases(exam, operation, _dtype(exam, operation)):
        good = native_call(exam, arguments)
        kernel = provider.get_kernel(operation.name)
        for name in operation.args:
            if isinstance(arguments[name], np.ndarray):
                moved = provider.from_numpy(arguments[name], other)
                exam.refuses(BackendError, kernel, **{**good, name: moved})
        _unchanged(exam, arguments, good)


def _dtype(exam: Exam, operation: Operation) -> DType:
    return exam.capability.operations[operation.name][0]


def _native(exam: Exam, value: Any) -> Any:
    return to_native(exam.provider, np.asarray(value) if isinstance(value, np.generic) else value)


def _refuses(exam: Exam, kernel: Any, arguments: Mapping[str, Any], what: str) -> None:
    try:
        kernel(**arguments)
    except InvalidArgumentError as error:
        exam.check(bool(error.message), f"{what} is refused without a word.")
    except Exception as error:  # noqa: BLE001 - whatever else it raises is the finding
        exam.check(condition=False, message=f"{what}: {type(error).__name__}: {error}.")
    else:
        exam.check(condition=False, message=f"{what} is not refused.")


def _refuses_signature(exam: Exam, kernel: Any, arguments: Mapping[str, Any], what: str) -> None:
    """As a Python function does, or as an error of ours."""
    try:
        kernel(**arguments)
    except (InvalidArgumentError, TypeError):
        return
    exam.check(condition=False, message=f"{what} is not refused.")


def _shown(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", "")
    return repr(value)[:40] if shape is None else f"{dtype}{shape}"


def _unchanged(exam: Exam, arguments: Arguments, native: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            exam.equal_bits(exam.provider.to_numpy(native[name]), value, f"{name} after a refusal")
