"""Speed: timing runs of work so that only what was really done counts.

Each run of a :class:`Work` takes what the run before it made, or data of its own, and what comes
out at last is known: it is right only if every run was done. Thus nothing can be left out, done
once for all, or taken from a cache.

The clock runs from the first submission until ``provider.synchronize()`` returns. That it did not
return early is seen from a small result that is read twice right afterwards: work under way
delays the first reading and not the second. An attempt that was delayed by more than half of what
was timed does not count, so that a speed in a report is at most half again as high as the true one.
A busy machine delays an attempt now and then; a provider of which no more than half count has said
that work was done when it was not.

A speed is reported, not judged. The limit beside it is a speed that was measured on the same device
in the same case, its attempts between those of the other. It is no bound that a case could fail by:
a vendor may have made the one fast and not yet the other.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from sagellm_backend.conformance.exam import Exam

Array = np.ndarray[Any, Any]

GIGA = 1e9

SPAN_S = 0.008
"""What the runs of one attempt take together, at least."""

ATTEMPTS = 3
"""Attempts that count, at least."""

BUDGET_S = 0.12
"""Time within which further attempts are begun."""

PATIENCE = 20
"""Attempts after which a provider is given up if no more than half of them count."""

SIZES = (4 << 20, 16 << 20, 128 << 20)
"""Bytes of large arrays: the fewest of these that keep a device busy for :data:`BUSY_S`."""

BUSY_S = 0.0004
_PART_OF_MEMORY = 16
"""Part of the memory at hand that an array may take."""


class Work(ABC):
    """One kind of work, on data of its own; ``amount`` is what one run does, in bytes or the like.

    ``most`` is how many runs an attempt may have.
    """

    amount: float
    most: int = 128

    def __init__(self, exam: Exam) -> None:
        self.exam = exam
        self.provider = exam.provider

    @abstractmethod
    def begin(self) -> Any:
        """What the first run is given."""

    @abstractmethod
    def step(self, state: Any, index: int) -> Any:
        """Give run ``index`` to the device; what the next one is given."""

    @abstractmethod
    def look(self, state: Any) -> Array:
        """A part of the last result, small or all there is, as a host array."""

    def look_again(self, state: Any) -> object:
        """As large a part of what is surely done: the same one, unless that is large and may be kept
        on the host once it was read.
        """
        return self.look(state)

    @abstractmethod
    def check(self, part: Array, runs: int) -> None:
        """Fail unless this is the part of what so many runs make."""

    def check_all(self, state: Any, runs: int) -> None:
        """Fail unless the last result is that of so many runs, where a part is not all of it."""


SomeWork = TypeVar("SomeWork", bound=Work)


class Meter(Generic[SomeWork]):
    """The attempts of one kind of work, all of them with equally many runs."""

    def __init__(self, work: SomeWork, runs: int = 0) -> None:
        self.work = work
        self.counted: list[float] = []
        self.attempts = 0
        self._last: tuple[Any, int] = (None, 0)
        self._most = runs or work.most
        self.runs = runs or self._calibrate()

    @property
    def settled(self) -> bool:
        """Whether enough attempts count, and more than do not."""
        return len(self.counted) >= max(ATTEMPTS, self.attempts // 2 + 1)

    @property
    def given_up(self) -> bool:
        """Whether it is no use to attempt more."""
        return not self.settled and self.attempts >= PATIENCE

    @property
    def rate(self) -> float:
        """The highest amount per second. Fails the case if it was given up, or nothing counted."""
        self.work.exam.check(
            self.counted and not self.given_up,
            f"In {self.attempts - len(self.counted)} of {self.attempts} attempts synchronize() "
            "returned long before the work was done, as the wait for its result showed then.",
        )
        return self.work.amount / min(self.counted)

    def attempt(self) -> None:
        """Time all runs once more."""
        timed, late = self._time(self.runs)
        if timed + max(late, 0.0) < SPAN_S / 2 and self.runs < self._most:
            # Something else delayed the machine while the runs were being counted.
            self.runs = min(2 * self.runs, self._most)
            return
        self.attempts += 1
        if late <= timed / 2:
            self.counted.append(timed / self.runs)

    def close(self) -> None:
        """Look at all of the last result."""
        self.work.check_all(*self._last)

    def _calibrate(self) -> int:
        """How many runs fill the span, whenever their time is spent."""
        self._time(1)  # the first call of all may compile, allocate, or wake the device
        self.close()
        runs = 2  # one alone would not show that what is done again is done
        while True:
            timed, late = self._time(runs)
            passed = timed + max(late, 0.0)
            if passed >= SPAN_S or runs >= self._most:
                return runs
            runs = min(runs * max(2, min(16, round(SPAN_S / passed))), self._most)

    def _time(self, runs: int) -> tuple[float, float]:
        """Seconds until the work was said to be done, and by which it was not."""
        work, synchronize = self.work, self.work.provider.synchronize
        state = work.begin()
        synchronize()
        start = time.perf_counter()
        for index in range(runs):
            state = work.step(state, index)
        synchronize()
        done = time.perf_counter()
        part = work.look(state)
        seen = time.perf_counter()
        work.look_again(state)
        again = time.perf_counter()
        work.check(part, runs)
        self._last = (state, runs)
        return done - start, (seen - done) - (again - seen)


def report(exam: Exam, unit: str, scale: float, meters: Sequence[Meter[Any]]) -> None:
    """Measure the first of ``meters`` as the metric ``unit``; the best of the others is its limit.

    They take turns, so that what else the machine does touches all of them. ``scale`` is how much
    of an amount makes one of the unit.
    """
    start = time.perf_counter()
    while not any(meter.given_up for meter in meters):
        for meter in meters:
            meter.attempt()
        if all(meter.settled for meter in meters) and time.perf_counter() - start > BUDGET_S:
            break
    for meter in meters:
        meter.close()
    exam.measure(unit, meters[0].rate / scale)
    if len(meters) > 1:
        exam.measure(f"{unit}_limit", max(meter.rate for meter in meters[1:]) / scale)


def sized(
    exam: Exam,
    make: Callable[[int], SomeWork],
    sizes: Sequence[int] = (),
    busy_s: float = BUSY_S,
) -> Meter[SomeWork]:
    """A meter of the work of the smallest of ``sizes`` of which one run takes ``busy_s``.

    The sizes are :data:`SIZES`, as far as there is memory, if none are given. Of too little work
    one would time the calls, and caches instead of memory.
    """
    for size in sizes or _sizes_here(exam):
        meter = Meter(make(size))
        while not (meter.settled or meter.given_up):
            meter.attempt()
        if meter.work.amount / meter.rate >= busy_s:
            break
    return meter


def same(exam: Exam, got: Any, wanted: Array, what: str) -> None:
    """As :meth:`Exam.equal_bits`, and fast for large arrays that are equal."""
    if isinstance(got, np.ndarray) and (got.shape, got.dtype) == (wanted.shape, wanted.dtype):
        ours, theirs = (np.ascontiguousarray(each).reshape(-1) for each in (got, wanted))
        if np.array_equal(ours.view(np.uint8), theirs.view(np.uint8)):
            return
    exam.equal_bits(got, wanted, what)


def _sizes_here(exam: Exam) -> tuple[int, ...]:
    """:data:`SIZES` as far as the device has memory for several such arrays."""
    free = exam.capability.available_memory_bytes or 0
    return tuple(size for size in SIZES if size <= free // _PART_OF_MEMORY) or SIZES[:1]
