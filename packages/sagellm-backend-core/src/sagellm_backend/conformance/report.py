"""The report of a run, built from what the parent process knows of plan and outcomes."""

from __future__ import annotations

import json
import math
import os
import platform
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagellm_backend import __version__
from sagellm_backend.conformance.case import Case
from sagellm_backend.conformance.digest import descriptor_digest, report_digest
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.exam import case_seed
from sagellm_backend.conformance.files import write_all
from sagellm_backend.conformance.html import html_page
from sagellm_backend.conformance.identity import provider_identity, suite_identity
from sagellm_backend.conformance.ids import word_of
from sagellm_backend.conformance.junit import junit_xml
from sagellm_backend.conformance.ledger import CaseResult
from sagellm_backend.conformance.result import RunResult
from sagellm_backend.conformance.schema import SCHEMA
from sagellm_backend.conformance.verdict import derive_verdict, level_of, summarise
from sagellm_backend.frameworks import version_of

OVERRIDES = "SAGELLM_"
"""Prefix of the environment variables that a report records."""


def build_report(run: RunResult) -> dict[str, Any]:
    """The report of a run as plain JSON data; it fits the published schema.

    Every planned case is in it: one without a result is ``missing``. The mode is ``dev`` unless the
    run was a whole examination of an installed backend. A provider that could not be built has no
    descriptor and no level; its report has the one case that says so. Raises :class:`HarnessError`
    for a result that was not planned, or came twice.
    """
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": str(uuid.uuid4()),
        "mode": "certification" if run.complete else "dev",
        "level": level_of(run.descriptor),
        "suite": suite_identity(),
        "provider": {
            "entry_point": run.backend,
            **provider_identity(None if run.factory else run.distribution),
            "descriptor": run.descriptor,
            "descriptor_digest": descriptor_digest(run.descriptor),
        },
        "environment": _environment(run),
        "request": {
            "profiles": list(run.plan.profiles),
            "depth": run.plan.depth,
            "seed": hex(run.seed),
            "case_timeout_s": run.case_timeout_s,
            "factory": run.factory,
        },
        "plan": {"cases": len(run.plan.cases), "digest": run.plan.digest},
        "cases": _cases(run),
        "not_applicable": [vars(item) for item in run.plan.not_applicable],
        "started": run.started,
        "finished": run.finished,
    }
    report["summary"] = summarise(report)
    report["verdict"] = derive_verdict(report)
    return {**report, "digest": report_digest(report)}


def write_reports(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``report.json``, ``junit.xml`` and ``report.html``, all or none; return their paths.

    Raises :class:`HarnessError` if they cannot be written.
    """
    contents = {
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "junit.xml": junit_xml(report),
        "report.html": html_page(report),
    }
    return write_all(folder, contents)


def _cases(run: RunResult) -> list[dict[str, Any]]:
    if run.descriptor is None:
        return [_startup(result) for result in run.cases]
    planned = {case.id for case in run.plan.cases}
    found: dict[str, CaseResult] = {}
    for result in run.cases:
        if result.id not in planned or result.id in found:
            fault = "came twice" if result.id in found else "was not planned"
            raise HarnessError(f"The result of {result.id} {fault}.")
        found[result.id] = result
    return [{**_planned(case, run.seed), **_found(found.get(case.id))} for case in run.plan.cases]


def _planned(case: Case, root_seed: int) -> dict[str, Any]:
    return {
        **described(case),
        "outcome": "missing",
        "seconds": 0.0,
        "seed": hex(case_seed(root_seed, case.id)),
        "metrics": {},
        "detail": "there is no result of it",
        "ranks": None,
    }


def described(case: Case) -> dict[str, Any]:
    """What the suite says of a case, as a report has it."""
    return {
        "id": case.id,
        "profile": case.profile,
        "text": case.text,
        "values": {name: word_of(case.id, value) for name, value in case.values.items()},
        "requires": [feature.value for feature in case.requires],
        "without": case.without.value if case.without else None,
    }


def _found(result: CaseResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    return {
        "outcome": result.outcome,
        "seconds": round(result.seconds, 6),
        "metrics": {name: _number(value) for name, value in result.metrics.items()},
        "detail": result.detail or None,
        "ranks": list(result.ranks) if result.ranks else None,
    }


def _startup(result: CaseResult) -> dict[str, Any]:
    return {
        "id": result.id,
        "profile": result.profile,
        "text": "The provider can be imported, built and asked what it claims.",
        "values": {},
        "requires": [],
        "without": None,
        "seed": hex(result.seed),
        **_found(result),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _environment(run: RunResult) -> dict[str, Any]:
    descriptor = run.descriptor
    device = descriptor and {
        "name": descriptor["device_name"],
        "type": descriptor["device_type"],
        "count": len(descriptor["devices"]),
        "memory_bytes": descriptor["total_memory_bytes"],
    }
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "device": device,
        "checkpoint": run.checkpoint,
        "versions": {
            "sagellm-backend-core": __version__,
            "numpy": version_of("numpy") or "unknown",
            **(descriptor["versions"] if descriptor else {}),
        },
        "overrides": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(OVERRIDES)
        },
    }
