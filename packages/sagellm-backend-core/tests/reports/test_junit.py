"""JUnit XML of reports."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from sagellm_backend.conformance.junit import junit_xml
from sagellm_backend.conformance.ledger import OUTCOMES
from sagellm_backend.conformance.report import build_report


def parsed(report):
    return ET.fromstring(junit_xml(report).encode("utf-8"))


def test_counts(make):
    results = [{"outcome": outcome, "detail": "why"} for outcome in OUTCOMES]
    report = build_report(make.run(results=results))
    root = parsed(report)
    total = len(report["cases"])
    counts = {name: int(root.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    skipped = sum(item["profile"] == "core" for item in report["not_applicable"])
    assert counts == {
        "tests": total + skipped,
        "failures": 2,
        "errors": len(OUTCOMES) - 3,
        "skipped": skipped,
    }
    assert len(root.findall(".//testcase")) == counts["tests"]
    assert len(root.findall(".//failure")) == counts["failures"]
    assert len(root.findall(".//error")) == counts["errors"]
    assert [suite.get("name") for suite in root] == ["core"]


def test_a_failure_says_why_and_with_which_seed(make):
    results = [{"outcome": "failed", "detail": "the copy differs\nat 3"}]
    report = build_report(make.run(results=results))
    (failure,) = parsed(report).findall(".//failure")
    assert failure.get("message") == "the copy differs"
    assert "at 3" in failure.text
    assert report["cases"][0]["seed"] in failure.text


def test_characters_that_xml_has_not_are_escaped(make):
    for detail in (make.markup, "\x00", "\ufffe", "\x1b[0m"):
        results = [{"outcome": "failed", "detail": detail}]
        (failure,) = parsed(build_report(make.run(results=results))).findall(".//failure")
        assert detail.encode("unicode_escape").decode()[-4:] in failure.text.replace("\n", " ")


def test_what_is_not_applicable_is_skipped_with_its_reason(make):
    report = build_report(make.run(profiles=("core", "kv")))
    reasons = [item.get("message") for item in parsed(report).findall(".//skipped")]
    assert any(reason.startswith("capability_not_declared: kv_pool") for reason in reasons)
