"""Timing: sides in turns, many runs of each, the best and the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sagellm_backend.bench.row import Side, Turn

BATCH_S = 0.001
"""Short calls are timed in batches that take so long, far above what a clock's reading costs."""

SETTLE_S = 0.25
"""The pause before another process has its turn: threads of the one before may still spin."""


@dataclass(frozen=True)
class Figures:
    """The seconds of one run, of many that were measured: the best and the median."""

    best: float
    median: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Figures:
        """The figures of at least one run."""
        return cls(min(seconds), statistics.median(seconds), len(seconds))


def repeated(
    call: Callable[[], object],
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Turn:
    """A turn of calls in this process, in batches of at least :data:`BATCH_S` once it is known.

    The clock of a batch stops when ``synchronize`` has returned. Each figure is the mean of a batch.
    """
    size = 1

    def turn(budget: float) -> list[float]:
        nonlocal size
        found: list[float] = []
        until = clock() + budget
        while not found or clock() < until:
            began = clock()
            for _ in range(size):
                call()
            synchronize()
            spent = clock() - began
            if spent < BATCH_S and size < 1 << 20:
                size *= 2
            else:
                found.append(spent / size)
        return found

    return turn


def in_turns(
    sides: Sequence[Side],
    *,
    rounds: int,
    budget: float,
    warm: bool = True,
    settle: Callable[[float], object] = time.sleep,
) -> list[Figures]:
    """The figures of each side. Every round gives each one turn; who begins changes every round.

    A first turn of each is not counted where they are to ``warm`` up: it compiles, allocates and
    fills caches. ``budget`` is the seconds of a turn.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    last = ""
    for number in range(-1 if warm else 0, rounds):
        for place in range(len(sides)):
            index = (place + max(number, 0)) % len(sides)
            side = sides[index]
            if side.process != last:
                settle(SETTLE_S)
                last = side.process
            spent = side.turn(budget if number >= 0 else budget / 4)
            if number >= 0:
                seconds[index] += spent
    return [Figures.of(each) for each in seconds]
