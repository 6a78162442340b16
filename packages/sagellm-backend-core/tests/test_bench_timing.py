"""Timing of the benchmark on a clock that only moves when it is told to."""

from __future__ import annotations

import pytest

from sagellm_backend.bench.row import Side
from sagellm_backend.bench.timing import BATCH_S, SETTLE_S, Figures, in_turns, repeated


class Clock:
    """A clock, and calls that take as long as they are told."""

    def __init__(self):
        self.now = 0.0
        self.calls = 0

    def __call__(self):
        return self.now

    def work(self, seconds):
        def call():
            self.now += seconds
            self.calls += 1

        return call


def test_a_long_call_is_timed_one_by_one():
    clock = Clock()
    turn = repeated(clock.work(0.01), clock=clock)
    assert turn(0.05) == pytest.approx([0.01] * 5)
    assert clock.calls == 5


def test_a_short_call_is_timed_in_batches_that_are_long_enough():
    clock = Clock()
    turn = repeated(clock.work(BATCH_S / 100), clock=clock)
    found = turn(10 * BATCH_S)
    assert found == pytest.approx([BATCH_S / 100] * len(found))
    assert len(found) < 10
    # The size of the batch is known by now: nothing is tried out again.
    clock.calls = 0
    assert len(turn(BATCH_S)) == 1
    assert clock.calls == 128


def test_what_is_waited_for_counts():
    clock = Clock()
    turn = repeated(clock.work(0.01), clock.work(0.002), clock)
    assert turn(0.0) == pytest.approx([0.012])


def side(name, log, seconds, process=""):
    def turn(budget):
        log.append((name, budget))
        return [seconds]

    return Side(name, turn, process)


def test_sides_take_turns_and_each_begins_a_round():
    log = []
    in_turns([side("a", log, 1.0), side("b", log, 2.0)], rounds=3, budget=0.4)
    assert [name for name, _ in log] == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [budget for _, budget in log] == [0.1, 0.1, *[0.4] * 6]


def test_the_first_turn_is_not_counted():
    seconds = iter([9.0, 3.0, 1.0, 2.0])
    (found,) = in_turns([Side("a", lambda _: [next(seconds)])], rounds=3, budget=0.0)
    assert found == Figures(best=1.0, median=2.0, count=3)


def test_without_a_first_turn_every_one_counts():
    seconds = iter([9.0, 3.0])
    (found,) = in_turns([Side("a", lambda _: [next(seconds)])], rounds=2, budget=0.0, warm=False)
    assert found == Figures(best=3.0, median=6.0, count=2)


def test_another_process_has_its_turn_when_the_last_one_is_quiet():
    log, pauses = [], []
    sides = [side("a", log, 1.0), side("b", log, 1.0, "peer"), side("c", log, 1.0, "peer")]
    in_turns(sides, rounds=1, budget=0.0, settle=pauses.append)
    # a | b c | a | b c, with a pause at each bar
    assert pauses == [SETTLE_S] * 3
