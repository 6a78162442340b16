"""Implementations of operations: what is offered, and what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from sagellm_backend.checks import shown
from sagellm_backend.errors import InvalidArgumentError

Kernel = Callable[..., Any]
Supports = Callable[..., list[str]]
Shortcut = Callable[[Kernel], Kernel]
"""Makes the kernel that is called of the guarded one: see ``KernelTable.register``."""

CUSTOM = "custom:"
"""What the names of kernels begin with that a user registered by name."""


class Policy(str, Enum):
    """What to do when no implementation supports a call.

    ``strict``: refuse. ``warn``: compute by the reference on the host, logged once per operation.
    ``allow``: the same in silence. Both are counted.
    """

    STRICT = "strict"
    WARN = "warn"
    ALLOW = "allow"

    @classmethod
    def parse(cls, value: Policy | str) -> Policy:
        """The policy of this name. Raises :class:`InvalidArgumentError`."""
        try:
            return cls(value)
        except ValueError:
            words = ", ".join(member.value for member in cls)
            raise InvalidArgumentError(
                f"{shown(value)} is no fallback policy.", hint=f"There are {words}."
            ) from None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation. ``supports(**static)`` gives reasons why it cannot."""

    operation: str
    name: str
    fn: Kernel
    priority: int = 0
    supports: Supports | None = None
    shortcut: Shortcut | None = None

    def reasons(self, static: Mapping[str, Any]) -> tuple[str, ...]:
        """Why this cannot serve the statics; empty when it can."""
        return tuple(self.supports(**static)) if self.supports else ()


@dataclass(frozen=True)
class Candidate:
    """One implementation in an :class:`Explanation`."""

    name: str
    priority: int
    supported: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What would run, what would not, and why. ``fallback``: the host's reference would."""

    operation: str
    signature: str
    meaning: str
    static: Mapping[str, Any]
    chosen: str | None
    candidates: tuple[Candidate, ...]
    policy: str
    fallback: bool

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data, for ``--json``."""
        data = asdict(self)
        data["static"] = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in self.static.items()
        }
        data["candidates"] = [
            {**candidate, "reasons": list(candidate["reasons"])} for candidate in data["candidates"]
        ]
        return data


def explain_custom(name: str) -> Explanation:
    """The explanation of a kernel that is found by its name only."""
    return Explanation(
        operation=name,
        signature=f"{name}(*args, **kwargs)",
        meaning="A kernel registered by name, with a contract of its own.",
        static={},
        chosen=f"{CUSTOM}{name}",
        candidates=(),
        policy=Policy.STRICT.value,
        fallback=False,
    )
