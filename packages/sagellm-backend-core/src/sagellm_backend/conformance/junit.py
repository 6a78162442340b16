"""JUnit XML, for the test views of CI systems."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

FAILURES = ("failed", "illegal_skip")
"""Outcomes that JUnit calls failures; the other bad ones are its errors."""

# XML 1.0 has no way to write these, not even escaped; tracebacks of drivers hold them.
_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: Mapping[str, Any]) -> str:
    """A report as JUnit XML: a suite for each profile, and what is not applicable as skipped.

    Failures carry their detail and seed. Characters that XML cannot hold are written as escapes.
    """
    root = ET.Element("testsuites", name=f"{report['suite']['name']} {report['suite']['version']}")
    for profile in report["request"]["profiles"]:
        cases = [case for case in report["cases"] if case["profile"] == profile]
        skipped = [item for item in report["not_applicable"] if item["profile"] == profile]
        suite = ET.SubElement(root, "testsuite", name=profile, timestamp=report["started"])
        _set_counts(suite, cases, len(skipped))
        for case in cases:
            _add_case(suite, case)
        for item in skipped:
            entry = ET.SubElement(suite, "testcase", classname=profile, name=item["id"], time="0")
            reason = ": ".join(filter(None, (item["reason"], item["detail"])))
            ET.SubElement(entry, "skipped", message=_writable(reason))
    _set_counts(root, report["cases"], sum(int(suite.get("skipped", 0)) for suite in root))
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _set_counts(element: ET.Element, cases: list[Any], skipped: int) -> None:
    failures = sum(case["outcome"] in FAILURES for case in cases)
    bad = sum(case["outcome"] != "passed" for case in cases)
    element.set("tests", str(len(cases) + skipped))
    element.set("failures", str(failures))
    element.set("errors", str(bad - failures))
    element.set("skipped", str(skipped))
    element.set("time", f"{sum(case['seconds'] for case in cases):.3f}")


def _add_case(suite: ET.Element, case: Mapping[str, Any]) -> None:
    entry = ET.SubElement(
        suite,
        "testcase",
        classname=case["profile"],
        name=case["id"],
        time=f"{case['seconds']:.3f}",
    )
    if case["outcome"] == "passed":
        return
    kind = "failure" if case["outcome"] in FAILURES else "error"
    detail = _writable(case["detail"] or f"The case came to {case['outcome']}.")
    first = detail.strip().partition("\n")[0]
    problem = ET.SubElement(entry, kind, type=case["outcome"], message=first)
    problem.text = f"{case['text']}\n{detail}\nSeed of the case: {case['seed']}"


def _writable(text: str) -> str:
    return _UNWRITABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
