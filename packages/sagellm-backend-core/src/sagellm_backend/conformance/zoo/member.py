"""Members of the zoo: how a broken or an honest provider is declared, and how one is found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops import operation
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.reference.kernels import make_kernel
from sagellm_backend.reference.provider import ReferenceProvider

Build = Callable[[Any], ReferenceProvider]
_Declared = TypeVar("_Declared", bound=Callable[..., Any])


@dataclass(frozen=True)
class Member:
    """A provider that the suite must judge rightly.

    One with ``kills`` has one planted fault, and of every case function named there
    (``profile.function``) at least one case must fail on it. One without is honest: it differs from
    the reference, is correct, and must fail nothing of its ``profiles``. ``apart`` says that it
    would harm the process that makes it; it claims what the reference claims. ``limit_s`` is the
    time that a case has.
    """

    name: str
    text: str
    build: Build
    profiles: tuple[str, ...]
    kills: tuple[str, ...] = ()
    apart: bool = False
    limit_s: float = 60.0

    @property
    def honest(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.kills

    @property
    def factory(self) -> str:
        """The ``module:function`` by which another process makes it."""
        return f"{__package__}:build_{self.name.replace('-', '_')}"


_MEMBERS: dict[str, Member] = {}


def member(
    profile: str, text: str, *, kills: tuple[str, ...], **properties: Any
) -> Callable[[_Declared], _Declared]:
    """Declare a class as a provider with the fault ``text``, under its own name.

    ``properties`` are further fields of :class:`Member`.
    """

    def declare(build: _Declared) -> _Declared:
        add_member(_name(build), profile, text, build, kills=kills, **properties)
        return build

    return declare


def honest(text: str, *, profiles: tuple[str, ...]) -> Callable[[_Declared], _Declared]:
    """Declare a class as a correct provider that differs in ``text``."""

    def declare(build: _Declared) -> _Declared:
        _add(Member(_name(build), text, build, profiles))
        return build

    return declare


def kernel_fault(
    target: str,
    text: str,
    *,
    kills: tuple[str, ...],
    profile: str = "kernels",
    name: str | None = None,
) -> Callable[[_Declared], _Declared]:
    """Declare the reference of an operation, with a fault, as the kernel of a provider.

    The function has the operation's signature, reads host arrays and returns what the outputs are
    rounded from. The member is named after it, unless ``name`` is given.
    """

    def declare(reference: _Declared) -> _Declared:
        build = with_kernels({target: reference})
        add_member(name or _name(reference), profile, text, build, kills=kills)
        return reference

    return declare


def add_member(
    name: str,
    profile: str,
    text: str,
    build: Build,
    *,
    kills: tuple[str, ...],
    **properties: Any,
) -> None:
    """Add a broken provider; see :class:`Member`."""
    profiles = dict.fromkeys((profile, *(case.partition(".")[0] for case in kills)))
    _add(Member(name, text, build, tuple(profiles), kills, **properties))


def with_kernels(references: Mapping[str, Callable[..., Any]]) -> type[ReferenceProvider]:
    """The reference provider with other kernels for some operations."""

    class WithKernels(ReferenceProvider):
        def _register_kernels(self, table: KernelTable) -> None:
            super()._register_kernels(table)
            for name, reference in references.items():
                changed = replace(operation(name), reference=reference)
                table.register(name, make_kernel(changed, self), name="changed", priority=1)

    return WithKernels


def declared() -> Mapping[str, Member]:
    """Everything declared so far, by name."""
    return _MEMBERS


def _add(found: Member) -> None:
    if found.name in _MEMBERS:
        raise InvalidArgumentError(f"The zoo has a {found.name} already.")
    _MEMBERS[found.name] = found


def _name(build: Callable[..., Any]) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", build.__name__).lower()
