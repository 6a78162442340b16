"""Dispatch: which implementation of an operation runs, why, and what happens when none can."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sagellm_backend.checks import check_type
from sagellm_backend.errors import CapabilityError, ErrorCode, InvalidArgumentError
from sagellm_backend.ops import table
from sagellm_backend.ops.guard import guard, guard_any, signature_problem
from sagellm_backend.ops.implementation import (
    CUSTOM,
    Candidate,
    Explanation,
    Implementation,
    Kernel,
    Policy,
    Shortcut,
    Supports,
    explain_custom,
)
from sagellm_backend.ops.table import Operation

__all__ = ["Candidate", "Explanation", "Implementation", "KernelTable", "Policy"]

CUSTOM_PRIORITY = 1000
"""The priority of kernels that a user registers by name, above all of a provider's own."""

REFERENCE = "reference"
"""The name under which the float64 reference of an operation shows."""

_log = logging.getLogger(__name__)


class KernelTable:
    """The implementations of one provider. Thread-safe.

    ``to_numpy(array)``, ``from_numpy(host_array)`` and ``write_back(array, host_array)`` carry
    arrays to the reference and back; without them nothing can fall back. ``is_native(array)`` tells
    a foreign array when a call has failed. ``policy`` is one for all
    operations, or a mapping by operation with ``"*"`` for the rest, else ``strict``. With
    ``reference_only`` the reference computes every operation, whatever is registered.
    """

    def __init__(
        self,
        provider: str,
        *,
        to_numpy: Callable[[Any], Any] | None = None,
        from_numpy: Callable[[Any], Any] | None = None,
        write_back: Callable[[Any, Any], None] | None = None,
        is_native: Callable[[Any], bool] | None = None,
        policy: Policy | str | Mapping[str, Any] = Policy.STRICT,
        reference_only: bool = False,
    ) -> None:
        self.provider = provider
        self.reference_only = reference_only
        self._hooks = (to_numpy, from_numpy, write_back)
        self._is_native = is_native
        if reference_only:
            self._require_hooks("reference_only")
        by_name = policy if isinstance(policy, Mapping) else {"*": policy}
        self._policies = {
            name if name == "*" else table.operation(name).name: Policy.parse(value)
            for name, value in by_name.items()
        }
        self._lock = threading.RLock()
        self._implementations: dict[str, tuple[Implementation, ...]] = {}
        self._custom: dict[str, Kernel] = {}
        self._resolved: dict[Any, Kernel] = {}
        self._fallbacks: dict[str, int] = {}

    def register(
        self,
        operation: str,
        fn: Kernel,
        *,
        name: str,
        priority: int = 0,
        supports: Supports | None = None,
        shortcut: Shortcut | None = None,
    ) -> None:
        """Offer ``fn`` for an operation of the table.

        ``supports(**static)`` gives the reasons why it cannot serve a call, none when it can; it
        sees those statics that the caller of :meth:`resolve` knows. The highest priority that can
        serve is chosen, the earlier registration among equals. ``shortcut(guarded)`` makes the
        kernel that callers get, where one Python call less counts: it computes the usual cases
        itself, leaves every other to ``guarded`` and raises nothing of its own. Raises
        :class:`OperatorNotFoundError`, and :class:`InvalidArgumentError` when ``fn`` cannot take
        the operation's arguments or the operation has an implementation of this name.
        """
        target = table.operation(operation)
        _require_callable(name, fn)
        problem = signature_problem(target, fn)
        if problem:
            raise _registration_error(f"{name!r} does not fit {target.name}: {problem}.")
        with self._lock:
            known = self._implementations.get(target.name, ())
            if any(implementation.name == name for implementation in known):
                raise _registration_error(f"{target.name} already has a {name!r}.")
            made = Implementation(target.name, name, fn, priority, supports, shortcut)
            self._insert(made)

    def register_custom(self, name: str, impl: Kernel) -> None:
        """Offer a kernel under any name (Protocol v0.1); the last registration wins.

        One for an operation of the table takes precedence over the provider's own; any other is
        found by its name only and called as it is.
        """
        if not check_type("name", name, str).strip():
            raise InvalidArgumentError("The name of a kernel must not be empty.")
        _require_callable(name, impl)
        target = table.canonical_name(name)
        with self._lock:
            if target is None:
                replaced: Any = self._custom.get(name)
                self._custom[name] = impl
            else:
                replaced = self._drop_custom(target)
                label = f"{CUSTOM}{getattr(impl, '__qualname__', type(impl).__qualname__)}"
                self._insert(Implementation(target, label, impl, CUSTOM_PRIORITY))
        if replaced is not None:
            _log.info("%s: the custom kernel for %s was replaced", self.provider, target or name)

    def resolve(self, name: str, **static: Any) -> Kernel:
        """The best implementation for these statics, which are given again at the call.

        To be resolved once and called often. Failures inside the kernel are raised as errors of
        our family. Raises :class:`OperatorNotFoundError`, :class:`InvalidArgumentError` for an
        unknown static or a bad value, and :class:`CapabilityError` with the reasons of every
        implementation when none can serve and the policy is strict.
        """
        custom = self._custom_kernel(name)
        if custom is not None:
            return custom
        operation = self._operation(name)
        static = operation.check_statics(static)
        key = (operation.name, tuple(sorted(static.items())))
        kernel = self._resolved.get(key)
        if kernel is None:
            with self._lock:
                kernel = self._choose(operation, static)
                self._resolved[key] = kernel
        return kernel

    def supports(self, name: str, **static: Any) -> list[str]:
        """Why no implementation can serve these statics; empty when one can.

        The reference on the host does not count. Raises like :meth:`resolve`, but for
        :class:`CapabilityError`.
        """
        if self._custom_kernel(name) is not None:
            return []
        operation = self._operation(name)
        candidates = self._candidates(operation, operation.check_statics(static))
        return _reasons(operation, candidates)

    def explain(self, name: str, **static: Any) -> Explanation:
        """What :meth:`resolve` would choose and why; resolves nothing. Raises as it does."""
        if self._custom_kernel(name) is not None:
            return explain_custom(name)
        operation = self._operation(name)
        static = operation.check_statics(static)
        candidates = self._candidates(operation, static)
        policy = self.policy(operation.name)
        chosen = next((item.name for item in candidates if item.supported), None)
        may_fall_back = policy is not Policy.STRICT and None not in self._hooks
        fallback = self.reference_only or (chosen is None and may_fall_back)
        return Explanation(
            operation=operation.name,
            signature=operation.signature,
            meaning=operation.meaning,
            static=static,
            chosen=REFERENCE if fallback else chosen,
            candidates=candidates,
            policy=policy.value,
            fallback=fallback,
        )

    def policy(self, operation: str) -> Policy:
        """The fallback policy of an operation."""
        return self._policies.get(operation, self._policies.get("*", Policy.STRICT))

    def names(self) -> tuple[str, ...]:
        """Operations that have an implementation, and custom kernels."""
        return (*self._implementations, *self._custom)

    def fallback_counts(self) -> dict[str, int]:
        """How many calls of each operation the reference has computed on the host."""
        with self._lock:
            return dict(self._fallbacks)

    def _custom_kernel(self, name: Any) -> Kernel | None:
        return self._custom.get(name) if isinstance(name, str) else None

    def _operation(self, name: str) -> Operation:
        return table.operation(name, others=tuple(self._custom))

    def _insert(self, implementation: Implementation) -> None:
        known = self._implementations.get(implementation.operation, ())
        ordered = sorted((*known, implementation), key=lambda item: -item.priority)
        self._implementations[implementation.operation] = tuple(ordered)
        self._resolved.clear()

    def _drop_custom(self, operation: str) -> Implementation | None:
        known = self._implementations.get(operation, ())
        found = next((item for item in known if item.name.startswith(CUSTOM)), None)
        self._implementations[operation] = tuple(item for item in known if item is not found)
        return found

    def _candidates(self, operation: Operation, static: Mapping[str, Any]) -> tuple[Candidate, ...]:
        found = []
        for item in self._implementations.get(operation.name, ()):
            reasons = item.reasons(static)
            found.append(Candidate(item.name, item.priority, not reasons, reasons))
        return tuple(found)

    def _choose(self, operation: Operation, static: Mapping[str, Any]) -> Kernel:
        if self.reference_only:
            return self._reference(operation)
        for item in self._implementations.get(operation.name, ()):
            if not item.reasons(static):
                wrap = guard_any if item.name.startswith(CUSTOM) else guard
                guarded = wrap(operation, item.name, item.fn, self._is_native)
                return guarded if item.shortcut is None else item.shortcut(guarded)
        reasons = _reasons(operation, self._candidates(operation, static))
        policy = self.policy(operation.name)
        if policy is Policy.STRICT:
            raise CapabilityError(
                operation.name,
                self.provider,
                "; ".join(reasons) + ".",
                hint="Policy 'warn' or 'allow' computes it by the reference on the host.",
            )
        self._require_hooks(operation.name)
        if policy is Policy.WARN and operation.name not in self._fallbacks:
            _log.warning(
                "%s: %s is computed by the reference on the host, which is slow: %s",
                self.provider,
                operation.name,
                "; ".join(reasons),
            )
        self._fallbacks.setdefault(operation.name, 0)
        return self._reference(operation)

    def _reference(self, operation: Operation) -> Kernel:
        to_numpy, from_numpy, write_back = self._hooks
        assert to_numpy is not None
        assert from_numpy is not None
        assert write_back is not None

        def compute(*args: Any, **kwargs: Any) -> Any:
            arguments = operation.bind(args, kwargs)
            operation.check(arguments)
            host = dict(arguments)
            for name in operation.args:
                if arguments[name] is not None:
                    host[name] = to_numpy(arguments[name])
            operation.check_values(host)
            results = operation.run_reference(host, operation.dtype(host))
            count = len(operation.returns)
            for name, values in zip(operation.mutates, results[count:], strict=True):
                write_back(arguments[name], values)
            with self._lock:
                self._fallbacks[operation.name] = self._fallbacks.get(operation.name, 0) + 1
            outputs = tuple(from_numpy(values) for values in results[:count])
            return outputs[0] if count == 1 else outputs or None

        return guard(operation, REFERENCE, compute, self._is_native)

    def _require_hooks(self, what: str) -> None:
        if None in self._hooks:
            raise CapabilityError(
                what, self.provider, "no hooks carry its arrays to the reference on the host."
            )


def _require_callable(name: str, fn: Any) -> None:
    if not callable(fn):
        raise _registration_error(f"{name!r} must be callable, not {type(fn).__name__}.")


def _registration_error(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, code=ErrorCode.OPERATOR_REGISTRATION_FAILED)


def _reasons(operation: Operation, candidates: tuple[Candidate, ...]) -> list[str]:
    if not candidates:
        return [f"no implementation of {operation.name} is registered"]
    if any(item.supported for item in candidates):
        return []
    return [f"{item.name}: {', '.join(item.reasons)}" for item in candidates]
