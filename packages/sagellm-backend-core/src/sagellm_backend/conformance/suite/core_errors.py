"""Core: failures are errors of one family, with a code, a builtin base, and a next step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pools import plain_layout
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    ErrorCode,
    InvalidArgumentError,
    OperatorNotFoundError,
    OutOfMemoryError,
    UnavailableError,
)

_KINDS: dict[type[BackendError], tuple[ErrorCode, type[Exception]]] = {
    InvalidArgumentError: (ErrorCode.INVALID_ARGUMENT, ValueError),
    OutOfMemoryError: (ErrorCode.RESOURCE_EXHAUSTED, MemoryError),
    UnavailableError: (ErrorCode.UNAVAILABLE, RuntimeError),
    CapabilityError: (ErrorCode.NOT_IMPLEMENTED, NotImplementedError),
    OperatorNotFoundError: (ErrorCode.OPERATOR_NOT_FOUND, KeyError),
}


@case("core", params={"kind": tuple(kind.__name__ for kind in _KINDS)})
def errors_are_of_one_family(exam: Exam) -> None:
    """An error is of our family and of the builtin that fits, with Protocol's code and a message.

    ``to_dict()`` is JSON. Kills a framework's error that comes through, a code of another kind.
    """
    kind = next(kind for kind in _KINDS if kind.__name__ == exam["kind"])
    code, builtin = _KINDS[kind]
    error = exam.refuses(kind, _failures(exam)[kind])
    exam.check(isinstance(error, builtin), f"{kind.__name__} is no {builtin.__name__}.")
    exam.check(error.code is code, f"the code is {error.code}, wanted {code}.")
    exam.check(bool(error.message.strip()) and str(error).startswith(error.message), f"{error!r}")
    exam.check(error.hint is None or bool(error.hint.strip()), "the hint is empty.")
    plain = json.loads(json.dumps(error.to_dict(), allow_nan=False))
    exam.check(
        plain["error"] == type(error).__name__ and plain["code"] == code.value,
        f"to_dict() says {plain}.",
    )


def _failures(exam: Exam) -> dict[type[BackendError], Callable[[], Any]]:
    provider = exam.provider
    closed = exam.make()
    closed.close()
    return {
        InvalidArgumentError: lambda: provider.empty(-1, DType.FP32),
        OutOfMemoryError: lambda: provider.empty((1 << 20, 1 << 30), DType.INT8),
        UnavailableError: lambda: closed.empty(1, DType.FP32),
        CapabilityError: lambda: provider.get_kernel("softmax", dtype=DType.INT4),
        OperatorNotFoundError: lambda: provider.get_kernel("telepathy"),
    }


@case("core")
def faults_of_kernels_are_explained(exam: Exam) -> None:
    """What a kernel raises becomes one of our errors that names the operation and keeps the cause.

    Kills a foreign exception that comes through a call.
    """
    provider = exam.provider

    def faulty(x: Any) -> Any:
        raise ZeroDivisionError(f"planted, for {type(x).__name__}")

    provider.register_kernel("softmax", faulty)
    array = provider.from_numpy(np.zeros((2, 3), np.float32))
    error = exam.refuses(
        UnavailableError, provider.get_kernel("softmax"), array, says=("softmax", "planted")
    )
    exam.check(isinstance(error.__cause__, ZeroDivisionError), f"the cause is {error.__cause__!r}.")


@case("core")
def custom_kernels_belong_to_one_provider(exam: Exam) -> None:
    """A kernel that a caller registers is called in place of the backend's, on that provider only.

    Kills a table of kernels that all providers of the process share.
    """
    provider, other = exam.provider, exam.make()
    calls: list[Any] = []

    def mine(x: Any) -> Any:
        calls.append(x)
        return x

    provider.register_kernel("softmax", mine)
    provider.register_kernel("telepathy", mine)
    array = provider.from_numpy(np.zeros((2, 3), np.float32))
    for name in ("softmax", "telepathy"):
        exam.check(provider.get_kernel(name)(array) is array, f"{name}: another kernel was called.")
    exam.check(len(calls) == 2, f"the custom kernel was called {len(calls)} times.")
    exam.refuses(OperatorNotFoundError, other.get_kernel, "telepathy")
    found = other.explain("softmax").candidates
    exam.check(
        not any(item.name.startswith("custom:") for item in found), f"the other has {found}."
    )


@case("core")
def a_closed_provider_refuses(exam: Exam) -> None:
    """After ``close`` everything that would make something is refused; closing again is allowed.

    Kills a provider that goes on, or that fails in its framework.
    """
    with exam.make() as provider:
        provider.from_numpy(np.zeros(3, np.float32))
    exam.check(provider.closed, "the provider is open after its with block.")
    provider.close()
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (provider.empty, (3, DType.FP32)),
        (provider.from_numpy, (np.zeros(3, np.float32),)),
        (provider.create_stream, ()),
        (provider.create_event, ()),
        (provider.capture, (lambda: None, {})),
        (provider.register_host_memory, (np.zeros(3),)),
        (provider.communicator, (0, 1)),
        (provider.kv_block_alloc, (1, DType.FP32)),
    ]
    if Feature.KV_POOL in exam.capability.features:
        calls.append((provider.kv_pool, (plain_layout(exam), 1)))
    for call, arguments in calls:
        error = exam.refuses(UnavailableError, call, *arguments, says=("closed",))
        exam.check(bool(error.hint), f"{call.__name__} names no next step.")
