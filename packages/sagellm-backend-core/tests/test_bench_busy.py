"""How busy the machine was, from counters that are made up."""

from __future__ import annotations

import os

import pytest

from sagellm_backend.bench import busy
from sagellm_backend.bench.busy import Busy, Ticks, scaling

CPUS = os.cpu_count() or 1


def looks(*ticks):
    found = iter(ticks)
    return Busy(quick=True, now=lambda: next(found))


def test_others_are_what_was_used_and_not_by_us():
    watch = looks(
        Ticks(used=100, stolen=5, ours=10, wall=0),
        Ticks(used=100 + 8, stolen=5, ours=10 + 6, wall=4),
        Ticks(used=300, stolen=9, ours=50, wall=50),
        Ticks(used=310, stolen=10, ours=60, wall=56),
    )
    with watch:
        pass
    assert watch.last == pytest.approx(2 / (4 * CPUS))
    with watch:
        pass
    assert watch.last == 0
    found = watch.report()
    assert found["others"] == pytest.approx(2 / (10 * CPUS))
    assert found["stolen"] == pytest.approx(1 / (10 * CPUS))


def test_where_the_system_says_nothing_nothing_is_known(tmp_path):
    assert Ticks.now(tmp_path) is None
    watch = looks(None, None)
    with watch:
        pass
    assert watch.last is None
    assert watch.report()["others"] is None


def test_the_counters_of_the_system_are_read(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(
        "cpu  100 20 30 4000 50 6 7 80 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    )
    found = Ticks.now(tmp_path)
    tick = os.sysconf("SC_CLK_TCK")
    assert found.used == pytest.approx((100 + 20 + 30 + 6 + 7) / tick)
    assert found.stolen == pytest.approx(80 / tick)


def test_children_that_live_count_as_ours(tmp_path):
    me, tick = os.getpid(), os.sysconf("SC_CLK_TCK")
    for pid, parent, seconds in ((me + 1, me, 3), (me + 2, me + 1, 5), (me + 3, 1, 70)):
        folder = tmp_path / f"proc/{pid}"
        folder.mkdir(parents=True)
        fields = ["S", parent, *[0] * 9, seconds * tick, 0, 0, 0]
        (folder / "stat").write_text(f"{pid} (a (b) c) {' '.join(map(str, fields))} 0 0")
    assert sum(busy._living(tmp_path, me, tick)) == pytest.approx(8)


def test_two_processes_are_spun():
    assert 0.2 < scaling(loops=200_000, attempts=2) < 20
