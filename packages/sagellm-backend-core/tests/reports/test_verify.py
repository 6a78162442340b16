"""Verification: reports that were tampered with are refused, each for its own reason."""

from __future__ import annotations

import json

import pytest

from sagellm_backend.cli import main
from sagellm_backend.conformance.digest import report_digest
from sagellm_backend.conformance.report import build_report
from sagellm_backend.conformance.verify import rerun_differences, verify

CLUMSY = {}
"""Changes of one who does not compute the digests anew, by name, with the reasons they meet."""

CAREFUL = {}
"""Changes of one who does."""


def tamper(table, *reasons):
    def note(function):
        table[function.__name__] = (function, reasons)
        return function

    return note


@tamper(CLUMSY, "the report was edited after its run", "the summary does not follow")
def an_outcome_was_edited(report):
    report["cases"][0]["outcome"] = "failed"


@tamper(CLUMSY, "the report was edited after its run")
def a_duration_was_edited(report):
    report["cases"][0]["seconds"] += 1


@tamper(CLUMSY, "cases were planned", "the digest of the plan does not fit")
def a_case_was_dropped(report):
    del report["cases"][4]


@tamper(CLUMSY, "the digest of the descriptor does not fit it")
def a_claim_was_dropped(report):
    report["provider"]["descriptor"]["supported_dtypes"] = []


@tamper(CLUMSY, "the verdict does not follow from the cases")
def a_failed_case_with_a_good_verdict(report):
    report["cases"][0]["outcome"] = "failed"
    report["summary"]["passed"] -= 1
    report["summary"]["failed"] += 1
    report["digest"] = report_digest(report)


@tamper(CLUMSY, "the summary does not follow from the cases")
def a_better_summary(report):
    report["summary"]["passed"] += 1
    report["digest"] = report_digest(report)


@tamper(CLUMSY, "the verdict does not follow from the cases")
def a_reason_was_struck_out(report):
    report["suite"]["dirty"] = True
    report["digest"] = report_digest(report)


@tamper(CAREFUL, "belongs to the plan and is not here")
def a_failing_case_was_left_out(report):
    del report["cases"][4]


@tamper(CAREFUL, "stands 2 times in the report")
def a_case_was_doubled(report):
    report["cases"].append(report["cases"][0])


@tamper(CAREFUL, "does not belong to the plan")
def a_case_was_invented(report):
    report["cases"].append({**report["cases"][0], "id": "core.invented"})


@tamper(CAREFUL, "is foreign to the profiles of this run")
def a_case_of_another_profile(report):
    report["cases"][0]["profile"] = "kv"


@tamper(CAREFUL, "not in the order of the plan")
def the_cases_were_sorted_anew(report):
    report["cases"].reverse()


@tamper(CAREFUL, "is not described as the suite has it")
def a_case_was_described_otherwise(report):
    report["cases"][0]["text"] = "It is very good."


@tamper(CAREFUL, "is not described as the suite has it")
def a_claim_was_called_a_refusal(report):
    report["cases"][0]["without"] = "graph"


@tamper(CAREFUL, "does not follow from that of the run")
def another_seed_was_drawn(report):
    report["cases"][0]["seed"] = "0x1"


@tamper(CAREFUL, "does not follow from that of the run")
def the_seed_of_the_run_was_edited(report):
    report["request"]["seed"] = "0x1"


@tamper(CAREFUL, "passed with r_max that is no number")
def an_infinite_error_passed(report):
    report["cases"][0]["metrics"]["r_max"] = None


@tamper(CAREFUL, "suite 2019.1 is unknown")
def a_suite_that_never_was(report):
    report["suite"]["version"] = "2019.1"


@tamper(CAREFUL, "was never published with the digest")
def a_suite_of_ones_own(report):
    report["suite"]["digest"] = "sha256:" + "0" * 64


@tamper(CAREFUL, "the level is L2, not L1")
def another_level(report):
    report["level"] = "L1"


@tamper(CAREFUL, "the level is L1, not L2")
def a_simulated_device_called_hardware(report):
    report["provider"]["descriptor"]["devices"][0]["facts"]["level"] = "L1"


@tamper(CAREFUL, "belongs to the plan and is not here")
def more_is_claimed_than_was_examined(report):
    report["provider"]["descriptor"]["supported_dtypes"].append("int8")


@tamper(CAREFUL, "The descriptor cannot be read")
def a_feature_that_there_is_not(report):
    report["provider"]["descriptor"]["features"] = ["flight"]


@tamper(CAREFUL, "is not applicable (capability_not_declared) is wrong or was left out")
def what_is_not_applicable_was_left_out(report):
    report["not_applicable"] = [
        item for item in report["not_applicable"] if item["reason"] != "capability_not_declared"
    ]


@tamper(CAREFUL, "a provider from the factory")
def a_factory_that_was_certified(report):
    report["request"]["factory"] = "module:function"


@tamper(CAREFUL, "no distribution is named")
def a_wheel_without_a_name(report):
    report["provider"]["distribution"] = None


@tamper(CAREFUL, "is not that of the descriptor")
def another_device(report):
    report["environment"]["device"]["type"] = "better"


@tamper(CAREFUL, "before it started")
def it_ended_before_it_started(report):
    report["finished"] = "2025-01-01T00:00:00Z"


@tamper(CAREFUL, "a time cannot be read")
def a_month_that_there_is_not(report):
    report["started"] = "2026-13-01T00:00:00Z"


@tamper(CAREFUL, "without a descriptor there can be no case")
def the_descriptor_was_removed(report):
    report["provider"]["descriptor"] = report["environment"]["device"] = report["level"] = None


SHAPES = {
    "an unknown field": lambda r: r.update(surplus=1),
    "an unknown field of a case": lambda r: r["cases"][0].update(xfail=True),
    "a missing field": lambda r: r.pop("verdict"),
    "an outcome that there is not": lambda r: r["cases"][0].update(outcome="xfailed"),
    "a profile that there is not": lambda r: r["request"].update(profiles=["speed"]),
    "a number as text": lambda r: r["plan"].update(cases="3"),
    "a truth value as a number": lambda r: r["summary"].update(failed=False),
    "a NaN": lambda r: r["cases"][0]["metrics"].update(r_max=float("nan")),
    "a negative duration": lambda r: r["cases"][0].update(seconds=-1),
    "a seed as a number": lambda r: r["request"].update(seed=7),
    "a digest cut short": lambda r: r.update(digest=r["digest"][:-1]),
    "an id with a path": lambda r: r["cases"][0].update(id="/home/x.py::case"),
    "a list in place of an object": lambda r: r.update(suite=[]),
}

FILES = {
    "empty": ("", "no JSON"),
    "text": ("all is well", "no JSON"),
    "a list": ("[]", "no JSON object"),
    "null": ("null", "no JSON object"),
    "another schema": ('{"schema": "other/1"}', "its schema is 'other/1'"),
    "no schema": ("{}", "its schema is None"),
    "a field twice": ('{"schema": 1, "schema": 2}', "stands twice"),
    "a NaN": ('{"schema": NaN}', "NaN is no JSON number"),
    "infinity in digits": ('{"schema": 1e999}', "out of range"),
    "a number without end": ('{"schema": ' + "9" * 5000 + "}", "out of range"),
    "nested without end": ("[" * 100_000, "nested too deeply"),
}


def test_an_untouched_report_holds(passed):
    assert verify(passed).holds
    assert verify(passed).notes == ()


@pytest.mark.parametrize("name", CLUMSY)
def test_clumsy_tampering_is_refused(passed, name):
    change, reasons = CLUMSY[name]
    change(passed)
    problems = verify(passed).problems
    for reason in reasons:
        assert any(reason in problem for problem in problems), problems


@pytest.mark.parametrize("name", CAREFUL)
def test_careful_tampering_is_refused(passed, make, name):
    change, reasons = CAREFUL[name]
    change(passed)
    make.reseal(passed)
    problems = verify(passed).problems
    for reason in reasons:
        assert any(reason in problem for problem in problems), problems


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_against_the_schema_is_refused(passed, save, capsys, name):
    SHAPES[name](passed)
    assert not verify(passed).holds
    assert main(["conformance", "verify", str(save(passed))]) == 1
    assert capsys.readouterr().err.startswith("REFUSED ")


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_report_gives_one_line(save, capsys, name):
    text, reason = FILES[name]
    assert main(["conformance", "verify", str(save(text))]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_truncated_report_gives_one_line(passed, save, capsys):
    text = json.dumps(passed)
    for length in (len(text) // 2, len(text) - 1):
        assert main(["conformance", "verify", str(save(text[:length]))]) == 1
        error = capsys.readouterr().err
        assert "may be truncated" in error
        assert error.count("\n") == 1


def test_bytes_that_are_no_text(tmp_path, capsys):
    (tmp_path / "report.json").write_bytes(b"\x80\x81")
    assert main(["conformance", "verify", str(tmp_path / "report.json")]) == 1
    assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("path", [".", "missing.json"])
def test_what_cannot_be_read(tmp_path, capsys, path):
    assert main(["conformance", "verify", str(tmp_path / path)]) == 1
    assert "Cannot read" in capsys.readouterr().err


def test_bad_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["conformance", "verify"])
    assert main(["conformance", "verify", "a", "b", "c"]) == 2
    assert "Give 1 or 2" in capsys.readouterr().err


def test_a_good_report_on_the_command_line(passed, save, capsys):
    path = save(passed)
    assert main(["conformance", "verify", str(path)]) == 0
    assert "HOLDS" in capsys.readouterr().out
    assert main(["conformance", "verify", str(path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["reports"]
    assert found["problems"] == []


def test_a_tampered_report_on_the_command_line(passed, save, capsys):
    an_outcome_was_edited(passed)
    assert main(["conformance", "verify", str(save(passed))]) == 1
    out = capsys.readouterr().out
    assert out.startswith("REFUSED")
    assert "edited after its run" in out


def test_two_reports_are_judged_for_a_certificate(passed, save, capsys):
    path = str(save(passed))
    assert main(["conformance", "verify", path, path, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["certificate"]
    assert not found["granted"]
    assert "both runs have the same seed" in found["shortfalls"]


def test_of_a_run_for_development_the_plan_is_not_derived(make):
    checked = verify(build_report(make.run(factory="module:function", complete=False)))
    assert checked.holds
    assert "development" in checked.notes[0]


def test_a_descriptor_that_breaks_the_planner_is_a_problem(passed):
    def planner(*_, **__):
        raise ZeroDivisionError("by a foreign claim")

    (problem,) = verify(passed, planner).problems
    assert "ZeroDivisionError" in problem


def test_differences_of_a_rerun(passed, make):
    again = build_report(make.run(results=[{"outcome": "crashed"}]))
    (difference,) = rerun_differences(passed, again)
    assert f"{passed['cases'][0]['id']} came to passed, in the second run to crashed" in difference
    assert rerun_differences(passed, passed) == []
    assert "another one" in rerun_differences(passed, build_report(make.run(profiles=("kv",))))[0]


def test_rerun_of_a_real_run(tmp_path, capsys, monkeypatch):
    out = str(tmp_path)
    request = ["--backend", "reference", "--profile", "kv", "--depth", "smoke"]
    assert main(["conformance", "run", *request, "--out", out]) == 0
    report = tmp_path / "reference" / "report.json"
    assert main(["conformance", "verify", str(report), "--rerun"]) == 0
    assert "HOLDS" in capsys.readouterr().out
