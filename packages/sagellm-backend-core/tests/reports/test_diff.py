"""Differences of reports."""

from __future__ import annotations

import json

import pytest

from sagellm_backend.cli import main
from sagellm_backend.conformance.diff import bound_share, compare, group_of
from sagellm_backend.conformance.report import build_report


def test_a_report_does_not_differ_from_itself(passed):
    found = compare(passed, passed)
    assert not found.regressed
    assert found.to_dict() == {
        "regressed": False,
        "newly_failing": {},
        "newly_passing": {},
        "changed": {},
        "appeared": {},
        "gone": {},
        "drift": (),
        "speeds": (),
        "notes": (),
    }


def test_outcomes(make):
    outcomes = ("passed", "failed", "timeout", "passed"), ("failed", "passed", "crashed", "passed")
    old, new = (
        build_report(make.run(results=[{"outcome": outcome} for outcome in row]))
        for row in outcomes
    )
    names = [case["id"] for case in old["cases"]]
    gone, appeared = old["cases"][5]["id"], "core.new"
    new["cases"][5]["id"] = appeared
    found = compare(old, new)
    assert found.newly_failing == {names[0]: "failed"}
    assert found.newly_passing == {names[1]: "failed"}
    assert found.changed == {names[2]: ("timeout", "crashed")}
    assert found.gone == {gone: "passed"}
    assert found.appeared == {appeared: "passed"}
    assert found.regressed


@pytest.mark.parametrize(
    ("change", "regressed"),
    [("newly failing", True), ("gone", True), ("appeared failing", True), ("appeared", False)],
)
def test_what_counts_as_worse(passed, make, change, regressed):
    new = json.loads(json.dumps(passed))
    if change == "newly failing":
        new["cases"][0]["outcome"] = "failed"
    elif change == "gone":
        del new["cases"][0]
    else:
        outcome = "failed" if change == "appeared failing" else "passed"
        new["cases"].append({**new["cases"][0], "id": "core.new", "outcome": outcome})
    assert compare(passed, new).regressed is regressed


def measured(passed, shares):
    report = json.loads(json.dumps(passed))
    template = report["cases"][0]
    report["cases"] = [
        {
            **template,
            "id": f"kernels.linear[bf16-{index}]",
            "values": {"dtype": "bf16", "case": str(index)},
            "metrics": {"r_max": 8 * share, "bound": 8.0},
        }
        for index, share in enumerate(shares)
    ]
    return report


def test_drift_within_the_bounds(passed):
    old = measured(passed, [0.1] * 9 + [0.4])
    found = compare(old, measured(passed, [0.1] * 9 + [0.8])).drift
    assert [(item.group, item.quantile) for item in found] == [("linear bf16", 1.0)]
    assert (found[0].old, found[0].new) == pytest.approx((0.4, 0.8))
    assert compare(old, measured(passed, [0.1] * 9 + [0.45])).drift == ()
    quantiles = [item.quantile for item in compare(old, measured(passed, [0.2] * 10)).drift]
    assert quantiles == [0.5, 0.9, 1.0]


def timed(passed, **metrics):
    report = json.loads(json.dumps(passed))
    report["cases"][0]["metrics"] = metrics
    return report


def test_other_speeds_are_told_and_not_judged(passed):
    old = timed(passed, gb_per_s=8.0, gb_per_s_limit=9.0, latency_us=10.0)
    assert compare(old, timed(passed, gb_per_s=7.0, latency_us=9.0)).speeds == ()
    found = compare(old, timed(passed, gb_per_s=2.0, gb_per_s_limit=1.0, latency_us=100.0))
    name = passed["cases"][0]["id"]
    assert [tuple(vars(item).values()) for item in found.speeds] == [
        (name, "gb_per_s", 8.0, 2.0),
        (name, "latency_us", 10.0, 100.0),
    ]
    assert not found.regressed
    assert compare(old, timed(passed)).speeds == ()
    assert compare(old, timed(passed, gb_per_s=None)).speeds == ()


def test_shares_of_bounds(passed):
    case = passed["cases"][0]
    assert bound_share({**case, "metrics": {"r_max": 2.0, "bound": 8.0}}) == 0.25
    assert bound_share({**case, "metrics": {"r_max": 0.0, "bound": 0.0}}) is None
    assert bound_share({**case, "metrics": {"r_max": None, "bound": 8.0}}) is None
    assert bound_share(case) is None
    assert group_of({"id": "kv.copy[int8]", "values": {}}) == ("copy", "")


def test_notes_say_what_else_is_different(passed, make):
    other = build_report(make.run(make.capability(device_name="Chip Two"), seed=9))
    notes = " ".join(compare(passed, other).notes)
    assert "the seeds differ: 0x4f25, then 0x9" in notes
    assert "the devices differ: Chip <One>, then Chip Two" in notes
    assert "the descriptors differ" in notes


def test_command_line(passed, save, capsys):
    new = json.loads(json.dumps(passed))
    new["cases"][0]["outcome"] = "failed"
    paths = [str(save(passed, "old.json")), str(save(new, "new.json"))]
    assert main(["conformance", "diff", *paths]) == 1
    assert f"Newly failing: 1\n  {passed['cases'][0]['id']}: failed" in capsys.readouterr().out
    assert main(["conformance", "diff", *paths[::-1], "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["newly_passing"]) == [passed["cases"][0]["id"]]
    assert main(["conformance", "diff", paths[0], paths[0]]) == 0
    assert "No outcome changed." in capsys.readouterr().out
    speeds = [timed(passed, gb_per_s=speed, latency_us=speed) for speed in (8.0, 2.0)]
    paths = [str(save(report, f"{index}.json")) for index, report in enumerate(speeds)]
    assert main(["conformance", "diff", *paths]) == 0
    printed = capsys.readouterr().out
    assert "Other speeds: 2\n" in printed
    assert f"  {passed['cases'][0]['id']} in GB/s: 8, then 2: 0.25 times\n" in printed
    assert "in µs: 8, then 2: 0.25 times" in printed
    paths = [str(save(passed, "old.json"))]
    assert main(["conformance", "diff", paths[0], str(save("{", "bad.json"))]) == 2
    assert "no JSON" in capsys.readouterr().err
