"""The report of the benchmark as a page: one file, no scripts, nothing fetched, light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import sagellm_backend.bench.html_parts as parts


def html_page(report: Mapping[str, Any]) -> str:
    """A report that fits the schema, as HTML5 in which all its text is escaped."""
    template = (files(__package__) / "data" / "bench.html").read_text("utf-8")
    machine = report["machine"]
    return Template(template).substitute(
        title=escape(f"Benchmark of {machine['backend']} on {machine['device']}"),
        style=_style(),
        core=escape(machine["core"]),
        finished=escape(f"{report['finished'][:10]} {report['finished'][11:16]} UTC"),
        hero=parts.hero(report),
        noise=parts.noise(report),
        targets=parts.targets(report["rows"]),
        limits=parts.limits(report["limits"]),
        groups=parts.groups(report["rows"]),
        absent=parts.absent(report["rows"]),
        environment=parts.environment(report),
        command=escape(report["command"]),
    )


def _style() -> str:
    """The style of the conformance suite's report, of which this page is a sister."""
    page = (files("sagellm_backend.conformance") / "data" / "report.html").read_text("utf-8")
    found = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    return found[1] if found else ""
