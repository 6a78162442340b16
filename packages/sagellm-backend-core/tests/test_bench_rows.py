"""The table of rows, and what becomes of one: figures, ratios, targets, absences."""

from __future__ import annotations

import pytest

from sagellm_backend import get_provider
from sagellm_backend.bench import row as table
from sagellm_backend.bench.busy import Busy
from sagellm_backend.bench.limits import Limits
from sagellm_backend.bench.peers import Peers
from sagellm_backend.bench.row import (
    GB_PER_S,
    LIMIT,
    MICROSECONDS,
    Absent,
    Bound,
    Match,
    Row,
    Side,
    Target,
    select,
)
from sagellm_backend.bench.run import Plan, measure, run
from sagellm_backend.bench.session import Session
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError

SESSION = Session(None, Limits([], {}), Peers({}, None), Busy(quick=True), quick=True)


def constant(name, seconds):
    return Side(name, lambda _: [seconds])


def result(match, *targets, unit=GB_PER_S):
    row = Row("a-row", "a group", "what it is", unit, lambda _: match, targets)
    return measure(row, SESSION).to_dict()


def test_a_ratio_is_how_many_times_as_fast_ours_is():
    match = Match(constant("ours", 0.5), [constant("slow", 2.0), constant("fast", 0.25)], 1e9)
    found = result(match, Target("slow", ratio=5.0), Target("fast", ratio=0.5))
    assert found["ours"]["best"] == pytest.approx(2.0)
    slow, fast = found["others"]
    assert (slow["ratio_best"], slow["met"]) == (pytest.approx(4.0), False)
    assert (fast["ratio_best"], fast["met"]) == (pytest.approx(0.5), True)
    assert slow["best"] == pytest.approx(0.5)


def test_the_best_and_the_median_are_told_apart():
    runs = [4.0, 1.0, 2.0]
    match = Match(Side("ours", lambda _: runs), [constant("other", 2.0)])
    found = result(match, unit=MICROSECONDS)
    assert found["ours"]["best"] == pytest.approx(1e6)
    assert found["ours"]["median"] == pytest.approx(2e6)
    assert found["ours"]["runs"] == 3
    (other,) = found["others"]
    assert (other["ratio_best"], other["ratio_median"]) == (pytest.approx(2.0), pytest.approx(1.0))


@pytest.mark.parametrize(("ours", "met"), [(1.15e-6, True), (1.25e-6, False)])
def test_a_target_in_microseconds_more(ours, met):
    match = Match(constant("ours", ours), [constant("inside", 1e-6)])
    (other,) = result(match, Target("inside", more_us=0.2), unit=MICROSECONDS)["others"]
    assert other["more_us"] == pytest.approx(1e6 * (ours - 1e-6))
    assert other["met"] is met


@pytest.mark.parametrize(("share", "met"), [(0.9, True), (0.8, False)])
def test_a_share_of_the_limit(share, met):
    match = Match(constant("ours", 1.0), [], 2e9, Bound("read", "a read", share))
    limit = result(match, Target(LIMIT, ratio=0.85))["limit"]
    assert limit["share"] == pytest.approx(share)
    assert limit["value"] == pytest.approx(2 / share)
    assert limit["met"] is met


def test_an_absent_alternative_is_a_line_that_says_so():
    (other,) = result(Match(constant("ours", 1.0), [Absent("vLLM", "not here")]))["others"]
    assert (other["name"], other["absent"], other["best"]) == ("vLLM", "not here", None)
    assert (other["ratio_best"], other["met"]) == (None, None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CapabilityError("linear", "made-up", "no unit for it."), "'linear' is not offered"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_a_row_that_cannot_run_says_why(error, words):
    def prepare(_):
        raise error

    found = measure(Row("a-row", "g", "t", GB_PER_S, prepare), SESSION).to_dict()
    assert found["ours"]["absent"].startswith(words)
    assert found["limit"] is None


def test_a_peer_that_was_not_named_is_absent_with_the_option_that_names_it():
    side = SESSION.peer("vllm", "vLLM", "vllm_attention.py", {})
    assert side == Absent("vLLM", "not asked for: --peer vllm=PYTHON")


def test_limits_are_taken_from_the_memory_that_holds_the_work():
    memory = [
        {"bytes": 8 << 20, "read": 50e9, "write": None, "copy": 10e9},
        {"bytes": 512 << 20, "read": 25e9, "write": None, "copy": 5e9},
    ]
    limits = Limits(memory, {"fp32": 1e11})
    assert limits.read(1e6).seconds == pytest.approx(1e6 / 50e9)
    assert limits.read(1e6, among=1e8).seconds == pytest.approx(1e6 / 25e9)
    assert limits.copy(4e9).seconds == pytest.approx(0.8)
    assert limits.product(DType.FP32, 1e11).seconds == pytest.approx(1.0)
    assert limits.product(DType.BF16, 1e11) is None


def test_an_interrupt_ends_the_run_with_what_is_done():
    def interrupt(_):
        raise KeyboardInterrupt

    ran = []
    prepares = [lambda _: Match(constant("ours", 1.0)), interrupt, lambda _: ran.append("late")]
    plan = Plan([Row(f"row-{n}", "g", "t", GB_PER_S, each) for n, each in enumerate(prepares)])
    plan.quick = True
    with get_provider("reference") as provider:
        report = run(provider, plan)
    assert [row["name"] for row in report["rows"]] == ["row-0"]
    assert not ran


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(table, "_ROWS", {})
    for name, group in (
        ("copy", "kv"),
        ("linear-1", "linear"),
        ("ids", "kv"),
        ("linear-8", "linear"),
    ):
        table.add(Row(name, group, "", GB_PER_S, lambda _: None))
    return table.rows()


def test_rows_of_a_group_stand_together(rows):
    assert [row.name for row in rows] == ["copy", "ids", "linear-1", "linear-8"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["copy", "ids", "linear-1", "linear-8"]),
        (["linear-8", "copy"], ["copy", "linear-8"]),
        (["kv"], ["copy", "ids"]),
        (["linear*"], ["linear-1", "linear-8"]),
    ],
)
def test_rows_are_chosen_by_name_group_or_beginning(rows, words, names):
    assert [row.name for row in select(words)] == names


def test_a_row_that_is_not_there_is_refused_with_its_neighbour(rows):
    with pytest.raises(InvalidArgumentError, match="did you mean 'linear-1'") as caught:
        select(["linaer-1"])
    assert "--list" in caught.value.hint
    with pytest.raises(InvalidArgumentError, match="No row or group is named 'x\\*'"):
        select(["x*"])


def test_a_name_is_given_once(rows):
    with pytest.raises(ValueError, match="declared twice"):
        table.add(Row("ids", "kv", "", GB_PER_S, lambda _: None))
