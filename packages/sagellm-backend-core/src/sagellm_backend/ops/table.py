"""The operation table: what every operation means, whatever the hardware.

An operation is declared by decorating its float64 NumPy reference: signature and docstring of the
reference are the contract, and what stands beside it (shapes, dtypes, accuracy, inputs) is what the
conformance suite proves of every provider.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.checks import shown
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import InvalidArgumentError, OperatorNotFoundError
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Case
from sagellm_backend.ops.shapes import Bindings, match
from sagellm_backend.ops.statics import Static

Array = np.ndarray[Any, Any]
Arguments = Mapping[str, Any]
_Reference = TypeVar("_Reference", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """One row of the table. Immutable and thread-safe.

    ``reference`` takes host arrays in their storage dtype and returns float64, not yet rounded;
    ``mutates`` names the arguments that it changes in place. ``inputs(rng, dtype)`` yields cases in
    the storage dtype. ``specialise`` gives the args of one call where they depend on it, ``relate``
    says what does not fit between shapes, statics and host metadata, ``inspect_data`` what is wrong
    with values that a host can see. ``magnitude`` gives, per output, the sum of the absolute values
    of the terms behind each element; ``positive_sum`` names the dimension over which terms of one
    sign are summed; ``bound`` and ``rms_bound`` are the error ratios that are allowed besides it,
    highest and root mean square. ``draw_errors`` judges the ids of a statistical operation.
    """

    name: str
    reference: Callable[..., Any]
    args: Mapping[str, Arg]
    returns: tuple[Arg, ...]
    accuracy: Accuracy
    kind: KernelKind
    inputs: Callable[[np.random.Generator, DType], Iterator[Case]]
    mutates: tuple[str, ...] = ()
    statics: Mapping[str, Static] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    specialise: Callable[[Arguments], Mapping[str, Arg]] | None = None
    relate: Callable[[Arguments, Bindings], str | None] | None = None
    inspect_data: Callable[[Arguments], str | None] | None = None
    magnitude: Callable[..., tuple[Array, ...]] | None = None
    draw_errors: Callable[..., Array] | None = None
    positive_sum: str | None = None
    bound: float = 8.0
    rms_bound: float = 1.0

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.reference)

    @cached_property
    def signature(self) -> str:
        """The call in one line, with the shape of every array."""
        words = []
        for name, parameter in self._signature.parameters.items():
            shape = f"[{self.args[name].spec}]" if name in self.args else ""
            default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
            if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
                words.append("*")
            words.append(f"{name}{shape}{default}")
        results = ", ".join(f"[{result.spec}]" for result in self.returns) or "None"
        return f"{self.name}({', '.join(words)}) -> {results}"

    @cached_property
    def meaning(self) -> str:
        """The first paragraph of the contract."""
        text = inspect.getdoc(self.reference) or ""
        return " ".join(text.split("\n\n")[0].split())

    def bind(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments by name, in order, with defaults. Raises InvalidArgumentError."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArgumentError(
                f"{self.name}: {error}.", hint=f"The signature is {self.signature}."
            ) from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def check(self, arguments: Arguments) -> Bindings:
        """Refuse what does not fit the contract: types, dtypes, shapes, static values.

        Works on the arrays of any framework, of which it reads ``.shape`` and ``.dtype`` only, and
        touches no device. ``arguments`` is what :meth:`bind` gives. Returns the size of every name
        in the shape specs. Raises :class:`InvalidArgumentError`.
        """
        args = self.specialise(arguments) if self.specialise else self.args
        present = {
            name: arg for name, arg in args.items() if self._is_present(name, arg, arguments)
        }
        self._check_dtypes(present, arguments)
        specs = {name: arg.spec for name, arg in present.items()}
        bindings = match(self.name, specs, arguments)
        for name in self.statics:
            if name in arguments:
                self._check_static(name, arguments[name])
        problem = self.relate(arguments, bindings) if self.relate else None
        if problem:
            raise InvalidArgumentError(f"{self.name}: {problem}.")
        return bindings

    def check_values(self, arguments: Arguments) -> Bindings:
        """:meth:`check`, and then the data, which must be NumPy arrays: ids, slots, ranges."""
        bindings = self.check(arguments)
        problem = self.inspect_data(arguments) if self.inspect_data else None
        if problem:
            raise InvalidArgumentError(f"{self.name}: {problem}.")
        return bindings

    def dtype(self, arguments: Arguments) -> DType:
        """The floating dtype ``T`` of a call."""
        name = next(name for name, arg in self.args.items() if arg.dtype == "T")
        return dtype_of(arguments[name])

    def check_statics(self, static: Mapping[str, Any]) -> dict[str, Any]:
        """The statics as implementations see them: known names, good values, dtype parsed.

        Raises :class:`InvalidArgumentError` for a name that the operation does not have.
        """
        known = ("dtype", *self.statics)
        for name in static:
            if name not in known:
                raise InvalidArgumentError(
                    f"{self.name} has no static argument {name!r}{_did_you_mean(name, known)}",
                    hint=f"It has {', '.join(known)}.",
                )
            if name != "dtype":
                self._check_static(name, static[name])
        if static.get("dtype") is None:
            return {name: value for name, value in static.items() if name != "dtype"}
        return {**static, "dtype": DType.parse(static["dtype"])}

    def statics_of(self, arguments: Arguments) -> dict[str, Any]:
        """All statics of a call that :meth:`check` accepts, for resolving its kernel."""
        bindings = self.check(arguments)
        found: dict[str, Any] = {"dtype": self.dtype(arguments)}
        for name, static in self.statics.items():
            if static.source is None:
                found[name] = arguments[name]
            elif callable(static.source):
                found[name] = static.source(arguments)
            else:
                found[name] = bindings.get(static.source)
        return found

    def run_reference(self, arguments: Arguments, dtype: DType) -> tuple[Array, ...]:
        """The reference's outputs, rounded to their storage dtype (``dtype`` for ``T``).

        Arguments are NumPy arrays and stay unchanged: behind the outputs come the new values of the
        arguments that the operation mutates.
        """
        results = self.exact_results(arguments)
        dtypes = [dtype if arg.dtype == "T" else arg.dtypes[0] for arg in self.returns]
        with np.errstate(over="ignore"):
            outputs = [
                np.asarray(value).astype(wanted.numpy)
                for value, wanted in zip(results, dtypes, strict=False)
            ]
        return (*outputs, *results[len(self.returns) :])

    def exact_results(self, arguments: Arguments) -> tuple[Array, ...]:
        """Like :meth:`run_reference`, with the outputs in float64 before the final rounding."""
        own = {name: np.array(arguments[name]) for name in self.mutates}
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            result = self.reference(**{**arguments, **own})
        outputs = result if isinstance(result, tuple) else (result,)
        return (*outputs[: len(self.returns)], *own.values())

    def output_args(self) -> tuple[Arg, ...]:
        """What :meth:`run_reference` returns, one Arg each: outputs, then mutated arguments."""
        return (*self.returns, *(self.args[name] for name in self.mutates))

    def _is_present(self, name: str, arg: Arg, arguments: Arguments) -> bool:
        value = arguments[name]
        if value is None and arg.optional:
            return False
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            raise InvalidArgumentError(
                f"{self.name}: {name} must be an array of shape ({arg.spec}), "
                f"not {type(value).__name__}.",
                hint="Make one with backend.from_numpy(...).",
            )
        return True

    def _check_dtypes(self, args: Mapping[str, Arg], arguments: Arguments) -> None:
        first: tuple[str, DType] | None = None
        for name, arg in args.items():
            got = dtype_of(arguments[name])
            if got not in arg.dtypes:
                words = " or ".join(dtype.value for dtype in arg.dtypes)
                raise InvalidArgumentError(f"{self.name}: {name} is {got.value}, wanted {words}.")
            if arg.dtype == "T":
                first = first or (name, got)
                if got != first[1]:
                    raise InvalidArgumentError(
                        f"{self.name}: {name} is {got.value} and {first[0]} is {first[1].value}; "
                        "they must have one dtype."
                    )

    def _check_static(self, name: str, value: Any) -> None:
        wanted = self.statics[name].rule(value)
        if wanted:
            raise InvalidArgumentError(f"{self.name}: {name} is {shown(value)}, wanted {wanted}.")


_OPERATIONS: dict[str, Operation] = {}
_ALIASES: dict[str, str] = {}

OPERATIONS: Mapping[str, Operation] = MappingProxyType(_OPERATIONS)
"""Every operation by name, in the order of declaration; read-only."""


def declare(**properties: Any) -> Callable[[_Reference], _Reference]:
    """Decorate a reference to make it an operation of its name; see :class:`Operation`."""

    def add(reference: _Reference) -> _Reference:
        found = Operation(name=reference.__name__, reference=reference, **properties)
        for name in (found.name, *found.aliases):
            if name in _ALIASES:
                raise ValueError(f"operation {name!r} is declared twice")
            _ALIASES[name] = found.name
        _OPERATIONS[found.name] = found
        return reference

    return add


def canonical_name(name: Any) -> str | None:
    """The table's name for ``name``, which may be an alias; ``None`` if there is none."""
    return _ALIASES.get(name)


def operation(name: Any, others: Iterable[str] = ()) -> Operation:
    """The operation of this name or alias.

    Raises :class:`OperatorNotFoundError` that lists the names (and ``others``, names known to the
    caller).
    """
    found = _ALIASES.get(name) if isinstance(name, str) else None
    if found is None:
        known = [*_OPERATIONS, *others]
        raise OperatorNotFoundError(
            f"No operation is named {name!r}{_did_you_mean(name, [*_ALIASES, *others])}",
            hint=f"There are {', '.join(known)}.",
        )
    return _OPERATIONS[found]


def _did_you_mean(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
