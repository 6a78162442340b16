"""Verification: what holds, what is no report, and what the command line says."""

from __future__ import annotations

import json

import pytest

from sagellm_backend.cli import main
from sagellm_backend.conformance.report import build_report
from sagellm_backend.conformance.verify import rerun_differences, verify

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
    passed["cases"][0]["outcome"] = "failed"
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
