"""The report as a page for people: one file, no scripts, nothing fetched, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from sagellm_backend.conformance import html_parts as parts
from sagellm_backend.conformance.charts import accuracy_chart, exact_groups, speed_chart
from sagellm_backend.conformance.verdict import LEVELS

_SHORT_LEVELS = {"L0": "Schemas only", "L1": "Simulated device", "L2": "Hardware"}


def html_page(report: Mapping[str, Any]) -> str:
    """A report that fits the schema, as HTML5 in which all its text is escaped."""
    template = files(__package__).joinpath("data/report.html").read_text("utf-8")
    request = report["request"]
    device = (report["environment"]["device"] or {}).get("name") or "no device"
    return Template(template).substitute(
        title=escape(f"{_product(report)} on {device}: {_state(report)}"),
        suite_version=escape(report["suite"]["version"]),
        finished=escape(_day(report["finished"])),
        hero=_hero(report),
        findings=_findings(report),
        level_lead=_level_lead(report["level"]),
        levels=_levels(report["level"]),
        profiles=parts.profile_table(report),
        accuracy=_accuracy(report["cases"]),
        speed=_speed(report["cases"]),
        claims=parts.claims(report["provider"]["descriptor"]),
        cases=parts.case_lists(report["cases"], request["profiles"]),
        not_applicable=parts.not_applicable(report["not_applicable"]),
        environment=parts.environment(report),
    )


def _product(report: Mapping[str, Any]) -> str:
    provider = report["provider"]
    name = provider["distribution"] or report["request"]["factory"] or provider["entry_point"]
    return f"{name} {provider['version'] or ''}".strip()


def _state(report: Mapping[str, Any]) -> str:
    return "Conformant" if report["verdict"]["conformant"] else "Not conformant"


def _day(time: str) -> str:
    return f"{time[:10]} {time[11:16]} UTC"


def _hero(report: Mapping[str, Any]) -> str:
    good = report["verdict"]["conformant"]
    summary, device = report["summary"], report["environment"]["device"] or {}
    total = len(report["cases"])
    seconds = sum(case["seconds"] for case in report["cases"])
    proven = [n for n, status in report["verdict"]["profiles"].items() if status == "passed"]
    memory = parts.memory(device.get("memory_bytes"))
    number = f"{device.get('count', 0)} x " if device.get("count", 0) > 1 else ""
    level = report["level"]
    facts = (
        ("Cases passed", f"{summary['passed']:,} of {total:,}", f"in {parts.seconds(seconds)}"),
        ("Level of proof", level or "none", _SHORT_LEVELS.get(level, "nothing ran")),
        ("Depth", report["request"]["depth"], f"seed {report['request']['seed']}"),
        ("Profiles proven", str(len(proven)), ", ".join(proven) or "none"),
    )
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    backend = escape(report["provider"]["entry_point"])
    return (
        f'<header class="card hero{" good" if good else ""}">'
        f'<span class="state"><span aria-hidden="true">{"✓" if good else "✗"}</span>'
        f"{_state(report)}</span><h1>{escape(_product(report))}</h1>"
        f'<p class="device">{number}{escape(device.get("name") or "no device")}'
        f"{f', {memory}' if memory else ''} · backend <code>{backend}</code></p>"
        f'<dl class="facts">{entries}</dl></header>'
    )


def _findings(report: Mapping[str, Any]) -> str:
    """What stands between the report and a certificate, and every failure."""
    verdict = report["verdict"]
    if verdict["certifiable"]:
        text = (
            '<div class="callout good"><h3>Fit for a certificate</h3><p>A certificate needs two such '
            "reports with equal outcomes: one with the published seed, one with a fresh one.</p></div>"
        )
    else:
        tone = "" if verdict["conformant"] else " bad"
        reasons = "".join(
            f"<li>{escape(reason[:1].upper() + reason[1:])}</li>" for reason in verdict["reasons"]
        )
        text = f'<div class="callout{tone}"><h3>No certificate</h3><ul>{reasons}</ul></div>'
    return text + parts.faults(report["cases"])


def _level_lead(level: str | None) -> str:
    if level == "L2":
        return "The cases ran on the device that is named above."
    if level is None:
        return "Nothing ran, so nothing was proven."
    return (
        "No hardware was examined. The outcomes hold for the code of the provider, "
        "not for any device that it may drive."
    )


def _levels(level: str | None) -> str:
    entries = "".join(
        f"<li{' aria-current=true' if name == level else ''}><b>{name} {_SHORT_LEVELS[name]}</b>"
        f"{escape(meaning[:1].upper() + meaning[1:])}.</li>"
        for name, meaning in LEVELS.items()
    )
    return f'<ol class="levels">{entries}</ol>'


def _accuracy(cases: list[Any]) -> str:
    chart, exact = accuracy_chart(cases), exact_groups(cases)
    if not chart and not exact:
        return ""
    names = ", ".join(f"<code>{escape(name)}</code>" for name in exact)
    bits = f"<p>With cases that allow no error at all, all met: {names}.</p>" if exact else ""
    return (
        "<section><h2>Accuracy</h2>"
        '<p class="lead">The largest error of all cases, in parts of what is allowed. The bound '
        "follows from the dtype and the length of the sums, against a float64 reference; no vendor "
        "can move it. A full bar is the bound.</p>"
        f'<div class="card">{chart}{bits}</div></section>'
    )


def _speed(cases: list[Any]) -> str:
    chart = speed_chart(cases)
    if not chart:
        return ""
    return (
        "<section><h2>Measured speed</h2>"
        '<p class="lead">Each speed against what the same device reached in the same case at '
        "plainer work, such as a copy: a full bar is that limit, not the figure of a data sheet. "
        "Results were checked, and work counts only if it was done when the clock stopped. Speeds "
        "are reported, not judged: no case fails by being slow.</p>"
        f'<div class="card">{chart}</div></section>'
    )
