"""The operations of a provider, case by case against the references."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.accuracy import Ratio, ratio
from sagellm_backend.dtypes import DType, parse_dtypes
from sagellm_backend.errors import CapabilityError
from sagellm_backend.ops import OPERATIONS, Operation
from sagellm_backend.ops import operation as find_operation
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.ops.cases import Array, Case


@dataclass(frozen=True)
class Finding:
    """The outcome of one case: how far the result is from the reference, and what is allowed.

    ``refused`` means that the provider said beforehand, by a CapabilityError, that it cannot.
    """

    operation: str
    dtype: str
    case: str
    passed: bool
    r_max: float = 0.0
    r_rms: float = 0.0
    bound: float = 0.0
    detail: str = ""
    refused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain JSON data, in which an infinite ratio is ``None``."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def examine_operations(
    provider: Any,
    dtypes: Iterable[Any] = FLOATING,
    seed: int = 0,
    operations: Iterable[str] = tuple(OPERATIONS),
) -> list[Finding]:
    """Run the cases of every operation of the table on ``provider``, in each of ``dtypes``.

    What its capability declares must come within the bounds of the operation's accuracy, leave all
    other arguments unchanged, and not be refused in every case; what it does not declare must raise
    :class:`CapabilityError` when it is resolved. ``operations`` restricts the run to some. The same
    seed gives the same cases. A failure, of whatever type, is a finding and raises nothing.
    """
    capability = provider.capability()
    found: list[Finding] = []
    for operation in map(find_operation, operations):
        for dtype in parse_dtypes(dtypes):
            if dtype in capability.operations.get(operation.name, ()):
                flushes = dtype in capability.flush_subnormals
                found += _examine(provider, operation, dtype, seed, flushes=flushes)
            else:
                found.append(_examine_refusal(provider, operation, dtype))
    return found


def cases(operation: Operation, dtype: DType, seed: int) -> Iterator[Case]:
    """The cases of one operation; their data depends on name, dtype and seed only."""
    stream = zlib.crc32(f"{operation.name}/{dtype.value}".encode())
    return operation.inputs(np.random.default_rng([seed, stream]), dtype)


def _examine(
    provider: Any, operation: Operation, dtype: DType, seed: int, *, flushes: bool
) -> list[Finding]:
    found = [
        _run(provider, operation, dtype, case, flushes=flushes)
        for case in cases(operation, dtype, seed)
    ]
    if all(finding.refused for finding in found):
        detail = "declared, and every case is refused"
        found.append(Finding(operation.name, dtype.value, "declared", passed=False, detail=detail))
    return found


def _examine_refusal(provider: Any, operation: Operation, dtype: DType) -> Finding:
    name, word = operation.name, dtype.value
    try:
        if provider.explain(name, dtype=dtype).fallback:
            return Finding(name, word, "undeclared", passed=True, detail="the reference stands in")
        provider.get_kernel(name, dtype=dtype)
    except CapabilityError as refusal:
        return Finding(name, word, "undeclared", passed=True, detail=str(refusal), refused=True)
    except Exception as error:  # noqa: BLE001 - whatever a provider raises is its finding
        return Finding(name, word, "undeclared", passed=False, detail=_describe(error))
    detail = "not declared, and resolved nevertheless"
    return Finding(name, word, "undeclared", passed=False, detail=detail)


def _run(
    provider: Any, operation: Operation, dtype: DType, case: Case, *, flushes: bool
) -> Finding:
    name, word = operation.name, dtype.value
    arguments = operation.bind((), case)
    try:
        kernel = provider.get_kernel(name, **operation.statics_of(arguments))
    except CapabilityError as refusal:
        return Finding(name, word, case.label, passed=True, detail=str(refusal), refused=True)
    except Exception as error:  # noqa: BLE001 - whatever a provider raises is its finding
        return Finding(name, word, case.label, passed=False, detail=_describe(error))
    try:
        found = judge(
            provider, operation, kernel, arguments, dtype, exact=case.exact, flushes=flushes
        )
    except Exception as error:  # noqa: BLE001 - whatever a provider raises is its finding
        return Finding(name, word, case.label, passed=False, detail=_describe(error))
    return Finding(
        name, word, case.label, found.passed, found.r_max, found.r_rms, found.bound, found.detail
    )


def judge(
    provider: Any,
    operation: Operation,
    kernel: Any,
    arguments: Mapping[str, Any],
    dtype: DType,
    *,
    exact: bool = False,
    flushes: bool = False,
) -> Ratio:
    """How near ``kernel`` comes to the reference for ``arguments`` on the host.

    ``exact`` and ``flushes`` are those of :func:`~sagellm_backend.conformance.accuracy.ratio`. A result of the wrong form, and an argument that it changed without being asked to, are
    infinitely far. What ``provider`` or ``kernel`` raise passes.
    """
    native = {name: to_native(provider, value) for name, value in arguments.items()}
    result = kernel(**native)
    outputs = result if isinstance(result, tuple) else (result,) * len(operation.returns)
    if not operation.returns and result is not None:
        return Ratio(np.inf, np.inf, 0, 0, f"returned {type(result).__name__}, wanted None")
    mutated = [native[name] for name in operation.mutates]
    got = [provider.to_numpy(array) for array in (*outputs, *mutated)]
    kept = {name: value for name, value in arguments.items() if name not in operation.mutates}
    for name, value in kept.items():
        if isinstance(value, np.ndarray) and not _same_bytes(
            provider.to_numpy(native[name]), value
        ):
            return Ratio(np.inf, np.inf, 0, 0, f"argument {name} was changed")
    return ratio(operation, arguments, got, dtype, exact=exact, flushes=flushes)


def to_native(provider: Any, value: Any) -> Any:
    """One argument of a call as ``provider`` takes it: arrays and metadata made its own."""
    if isinstance(value, np.ndarray):
        return provider.from_numpy(value)
    if isinstance(value, AttentionMetadata):
        return provider.attention_metadata(
            value.query_lens, value.kv_lens, value.block_table, value.block_size
        )
    return value


def _same_bytes(left: Array, right: Array) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
