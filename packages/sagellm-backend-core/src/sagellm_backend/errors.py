"""The error family: every failure of a backend is a :class:`BackendError`.

An error carries a Protocol error code, a hint (the next step for whoever reads it) and the numbers
behind the message. Each class is also the builtin that fits it, so ``except ValueError`` and
``except MemoryError`` work as a Python programmer expects.
"""

from __future__ import annotations

from enum import Enum
from typing import Any


class ErrorCode(str, Enum):
    """Error codes of Protocol v0.1, value by value."""

    INVALID_ARGUMENT = "invalid_argument"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_IMPLEMENTED = "not_implemented"
    KV_TRANSFER_FAILED = "kv_transfer_failed"
    COMM_TIMEOUT = "comm_timeout"
    COMM_GROUP_INVALID = "comm_group_invalid"
    DISTRIBUTED_RUNTIME_ERROR = "distributed_runtime_error"
    OPERATOR_NOT_FOUND = "operator_not_found"
    INVALID_OPERATOR_MAPPING = "invalid_operator_mapping"
    OPERATOR_REGISTRATION_FAILED = "operator_registration_failed"
    COMM_BACKEND_NOT_SUPPORTED = "comm_backend_not_supported"
    COMM_RANK_MISMATCH = "comm_rank_mismatch"
    COMM_GROUP_NOT_FOUND = "comm_group_not_found"
    COMM_COLLECTIVE_FAILED = "comm_collective_failed"
    COMM_P2P_FAILED = "comm_p2p_failed"
    KV_PREFETCH_FAILED = "kv_prefetch_failed"
    KV_QOS_CONSTRAINT_VIOLATED = "kv_qos_constraint_violated"
    KV_PRIORITY_QUEUE_FULL = "kv_priority_queue_full"
    COMPRESSION_NOT_SUPPORTED = "compression_not_supported"
    QUANTIZATION_CALIBRATION_FAILED = "quantization_calibration_failed"
    SPECULATIVE_DECODING_FAILED = "speculative_decoding_failed"


class BackendError(Exception):
    """Root of the family.

    ``code`` is the Protocol code, ``hint`` the next step or ``None``, ``numbers`` the quantities
    that the message speaks of (``requested``, ``free``, ``limit``, …). ``str(error)`` is the message
    with the hint behind it.
    """

    code: ErrorCode = ErrorCode.UNAVAILABLE

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: ErrorCode | None = None,
        **numbers: float,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.numbers = numbers
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, Any]:
        """The error as plain data, for logs and ``--json``."""
        return {
            "error": type(self).__name__,
            "code": self.code.value,
            "message": self.message,
            "hint": self.hint,
            "numbers": self.numbers,
        }


class InvalidArgumentError(BackendError, ValueError):
    """An argument is of the wrong type, shape, range or origin. Nothing was changed."""

    code = ErrorCode.INVALID_ARGUMENT


class OutOfMemoryError(BackendError, MemoryError):
    """A request does not fit (bytes or blocks): ``numbers`` has requested, free and limit.

    Nothing was allocated, and the next request that fits succeeds.
    """

    code = ErrorCode.RESOURCE_EXHAUSTED


class UnavailableError(BackendError, RuntimeError):
    """A backend, device or object cannot be used now: absent, broken, closed or failed."""

    code = ErrorCode.UNAVAILABLE


class PackageMissingError(UnavailableError, ImportError):
    """A name was imported that lives in a distribution which is not installed."""


class PackageClashError(UnavailableError, ImportError):
    """Another distribution has overwritten files of ``sagellm_backend``."""


class CapabilityError(BackendError, NotImplementedError):
    """A feature that this provider does not declare was asked for.

    The message names feature, provider, reason and next step; it is the only way in which absence
    shows: never ``None``, never ``AttributeError``.
    """

    code = ErrorCode.NOT_IMPLEMENTED

    def __init__(
        self, feature: str, provider: str, reason: str, *, hint: str | None = None
    ) -> None:
        super().__init__(f"{feature!r} is not offered by backend {provider!r}: {reason}", hint=hint)
        self.feature = feature
        self.provider = provider
        self.reason = reason


class OperatorNotFoundError(BackendError, KeyError):
    """No operation or kernel has this name."""

    code = ErrorCode.OPERATOR_NOT_FOUND


class DeadlineExceededError(BackendError, TimeoutError):
    """A wait ran past its timeout."""

    code = ErrorCode.DEADLINE_EXCEEDED


class KVTransferError(BackendError, RuntimeError):
    """A copy of KV blocks failed; ``numbers`` says how many blocks had been asked for."""

    code = ErrorCode.KV_TRANSFER_FAILED


class CommError(BackendError, RuntimeError):
    """A collective or a rendezvous failed: a dead peer, a mismatch, an unusable group."""

    code = ErrorCode.COMM_COLLECTIVE_FAILED


class CommTimeoutError(CommError, TimeoutError):
    """A collective or a rendezvous ran past the group's timeout."""

    code = ErrorCode.COMM_TIMEOUT
