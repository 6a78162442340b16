"""Rows of the benchmark: what is measured, in what unit, against what, and what is hoped for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from sagellm_backend.errors import InvalidArgumentError

if TYPE_CHECKING:
    from sagellm_backend.bench.session import Session

LIMIT = "limit"
"""In a target, the limit of the machine instead of an alternative."""

Turn: TypeAlias = Callable[[float], list[float]]
"""Run for about so many seconds, once at least; the seconds that each run took."""


@dataclass(frozen=True)
class Unit:
    """How seconds are shown: as a rate of work, or as a time for one piece of it.

    ``scale`` is how much one of ``label`` is: 1e9 for GB/s, 1e-6 for µs.
    """

    label: str
    scale: float
    rate: bool

    def value(self, seconds: float, amount: float) -> float:
        """What a run of ``seconds`` that did ``amount`` of work is in this unit."""
        found = amount / seconds if self.rate else seconds / amount
        return found / self.scale


GB_PER_S = Unit("GB/s", 1e9, rate=True)
GFLOP_PER_S = Unit("GFLOP/s", 1e9, rate=True)
TOKENS_PER_S = Unit("tokens/s", 1.0, rate=True)
MICROSECONDS = Unit("µs", 1e-6, rate=False)
MILLISECONDS = Unit("ms", 1e-3, rate=False)
NANOSECONDS = Unit("ns", 1e-9, rate=False)


@dataclass(frozen=True)
class Target:
    """What is hoped for against one alternative, by its name, or against :data:`LIMIT`.

    ``ratio`` is how many times as fast ours should be at least, or for the limit the share of it;
    ``more_us`` how many microseconds more than the alternative one run of ours may take.
    """

    against: str
    ratio: float | None = None
    more_us: float | None = None


@dataclass(frozen=True)
class Side:
    """One of those compared. ``process`` names the process that computes, "" for this one.

    ``facts`` is what that process told of itself when it was ready.
    """

    name: str
    turn: Turn
    process: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Absent:
    """One that cannot be compared here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Bound:
    """What the machine's limit allows: ``seconds`` for one run at the speed that ``text`` names.

    ``kind`` is the limit in one word, such as ``read``.
    """

    kind: str
    text: str
    seconds: float


@dataclass(frozen=True)
class Match:
    """A row that is ready to run: its sides, and the ``amount`` of work in one run of each."""

    ours: Side | Absent
    others: Sequence[Side | Absent] = ()
    amount: float = 1.0
    bound: Bound | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table. ``text`` says what one run is; ``prepare`` makes the sides."""

    name: str
    group: str
    text: str
    unit: Unit
    prepare: Callable[[Session], Match]
    targets: tuple[Target, ...] = ()


_ROWS: dict[str, Row] = {}


def add(row: Row) -> None:
    """Put a row into the table, behind those that are there. Raises ValueError for a name twice."""
    if row.name in _ROWS:
        raise ValueError(f"row {row.name!r} is declared twice")
    _ROWS[row.name] = row


def rows() -> tuple[Row, ...]:
    """Every row, in the order of declaration, groups together."""
    order = list(dict.fromkeys(row.group for row in _ROWS.values()))
    return tuple(sorted(_ROWS.values(), key=lambda row: order.index(row.group)))


def select(words: Iterable[str]) -> tuple[Row, ...]:
    """The rows of these names or groups, or all without any.

    A word that ends with ``*`` takes all names that begin so. Raises
    :class:`InvalidArgumentError` for a word that takes none.
    """
    found: dict[str, Row] = {}
    wanted = list(words)
    for word in wanted:
        taken = [row for row in rows() if _takes(word, row)]
        if not taken:
            known = sorted({*_ROWS, *(row.group for row in rows())})
            near = difflib.get_close_matches(word, known, n=1)
            raise InvalidArgumentError(
                f"No row or group is named {word!r}"
                f"{f'; did you mean {near[0]!r}?' if near else '.'}",
                hint="sagellm-backend bench --list shows them all.",
            )
        found.update((row.name, row) for row in taken)
    return tuple(row for row in rows() if not wanted or row.name in found)


def _takes(word: str, row: Row) -> bool:
    if word.endswith("*"):
        return row.name.startswith(word[:-1])
    return word in (row.name, row.group)
