"""Guards: calls whose failures are errors of our family, at the cost of one Python call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from sagellm_backend.errors import (
    BackendError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.ops.implementation import Kernel
from sagellm_backend.ops.table import Operation, operation

IsNative = Callable[[Any], bool]

_TEMPLATE = """\
def make(fn, explain, BackendError, {defaults}):
    def {name}({parameters}):
        try:
            return fn({call})
        except BackendError:
            raise
        except Exception as error:
            raise explain((), dict({arguments}), error) from error
    {name}.__qualname__ = "{name}"
    return {name}
"""


def guard(
    target: Operation, implementation: str, fn: Kernel, is_native: IsNative | None = None
) -> Kernel:
    """``fn`` with the signature of its operation, and its failures explained.

    ``fn`` is called with the arrays by position and keyword-only arguments by keyword, defaults
    filled in. ``is_native`` tells the provider's arrays from others.
    """

    def explain(args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception) -> BackendError:
        return explain_failure(target, implementation, args, kwargs, error, is_native)

    guarded: Kernel = _maker(target.name)(fn, explain)
    return guarded


def guard_any(
    target: Operation, implementation: str, fn: Kernel, is_native: IsNative | None = None
) -> Kernel:
    """Like :func:`guard`, for a ``fn`` that may have a signature of its own."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except BackendError:
            raise
        except Exception as error:
            raise explain_failure(target, implementation, args, kwargs, error, is_native) from error

    return call


def signature_problem(target: Operation, fn: Kernel) -> str | None:
    """Why ``fn`` cannot be called as the operation is; ``None`` if it can, or does not tell."""
    try:
        own = inspect.signature(fn)
    except (TypeError, ValueError):
        return None
    parameters = inspect.signature(target.reference).parameters.values()
    by_keyword = {item.name: None for item in parameters if item.kind is item.KEYWORD_ONLY}
    try:
        own.bind(*(None for item in parameters if item.name not in by_keyword), **by_keyword)
    except TypeError as error:
        return f"{error}; it is called as {target.signature}"
    return None


@cache
def _maker(name: str) -> Callable[..., Kernel]:
    """A guard with the operation's own parameters: ``*args, **kwargs`` would cost four times it."""
    parameters = inspect.signature(operation(name).reference).parameters.values()
    scope: dict[str, Any] = {}
    words, call = [], []
    for item in parameters:
        if item.kind is item.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        given = "" if item.default is item.empty else f"=default_{item.name}"
        words.append(item.name + given)
        call.append(f"{item.name}={item.name}" if item.kind is item.KEYWORD_ONLY else item.name)
    defaults = {f"default_{p.name}": p.default for p in parameters if p.default is not p.empty}
    source = _TEMPLATE.format(
        name=name,
        defaults=", ".join(defaults),
        parameters=", ".join(words),
        call=", ".join(call),
        arguments=", ".join(f"{item.name}={item.name}" for item in parameters),
    )
    exec(source, scope)  # noqa: S102 - the text is made of the table's own names
    make = scope["make"]

    def bound(fn: Kernel, explain: Callable[..., BackendError]) -> Kernel:
        made: Kernel = make(fn, explain, BackendError, **defaults)
        return made

    return bound


def explain_failure(
    target: Operation,
    implementation: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    error: Exception,
    is_native: IsNative | None = None,
) -> BackendError:
    """What a failed call means: a bad argument, too little memory, or a fault of the kernel."""
    try:
        arguments = target.bind(args, kwargs)
        target.check(arguments)
    except InvalidArgumentError as refusal:
        return refusal
    for name in target.args:
        value = arguments[name]
        if is_native is not None and value is not None and not is_native(value):
            return InvalidArgumentError(
                f"{target.name}: {name} is no array of this backend but a {type(value).__name__}.",
                hint="Make one with backend.from_numpy(...).",
            )
    if isinstance(error, IndexError):
        return InvalidArgumentError(
            f"{target.name}: an id, position or slot lies outside of its array: {error}.",
            hint=f"Shapes and dtypes fit {target.signature}.",
        )
    what = f"{target.name} ({implementation}) failed: {type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return OutOfMemoryError(what, hint="Free memory or make the batch smaller.")
    return UnavailableError(
        what, hint=f"The arguments fit {target.signature}; the fault lies in the kernel."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a framework's exception says that memory ran out."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error).lower()
    )
