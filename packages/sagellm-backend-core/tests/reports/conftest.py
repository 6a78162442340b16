"""Reports of hand-made runs: a small device that claims nothing optional, and its plan."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance import digest, identity
from sagellm_backend.conformance.case import plan
from sagellm_backend.conformance.exam import case_seed
from sagellm_backend.conformance.ledger import CaseResult
from sagellm_backend.conformance.report import build_report
from sagellm_backend.conformance.result import RunResult
from sagellm_backend.conformance.verdict import CERTIFICATION_SEED, derive_verdict, summarise
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType

MARKUP = "<script>alert('x')</script> & \"quotes\" \x1b[31m \ud800"
SUITE = "sha256:" + "5" * 64


def capability(**changes):
    """A chip with arrays and no optional feature."""
    facts = {
        "device_name": "Chip <One>",
        "device_type": "chip",
        "provider": "chip",
        "total_memory_bytes": 8 << 30,
        "supported_dtypes": [DType.FP32],
        "devices": (DeviceInfo(0, "Chip <One>", 8 << 30, (DType.FP32,)),),
        "versions": {"chiplib": "1.2"},
    }
    return CapabilityDescriptor(**{**facts, **changes})


def result_of(case, seed, **changes):
    """A pass of a planned case."""
    facts = {
        "id": case.id,
        "profile": case.profile,
        "outcome": "passed",
        "seconds": 0.25,
        "seed": case_seed(seed, case.id),
        "metrics": {},
        "detail": "",
        "ranks": None,
    }
    return CaseResult(**{**facts, **changes})


def make_run(
    claims=None, *, seed=CERTIFICATION_SEED, profiles=("core",), results=(), here=True, **changes
):
    """A run in which all cases pass, but for ``results``: fields of the first, the second, ...

    ``here`` says whether there was a checkpoint.
    """
    claims = claims or capability()
    planned = plan(claims, profiles, "standard", checkpoint=here)
    cases = [result_of(case, seed) for case in planned.cases]
    for index, fields in enumerate(results):
        cases[index] = result_of(planned.cases[index], seed, **fields)
    facts = {
        "backend": "chip",
        "distribution": None,
        "factory": None,
        "seed": seed,
        "case_timeout_s": 60.0,
        "plan": planned,
        "descriptor": claims.to_dict(),
        "cases": tuple(cases),
        "started": "2026-03-01T10:00:00.000Z",
        "finished": "2026-03-01T10:01:40.500Z",
        "seconds": 100.5,
        "complete": True,
    }
    return RunResult(**{**facts, **changes})


def reseal(report):
    """Everything that a forger can compute, computed anew."""
    report["provider"]["descriptor_digest"] = digest.descriptor_digest(
        report["provider"]["descriptor"]
    )
    ids = [case["id"] for case in report["cases"]]
    report["plan"] = {"cases": len(ids), "digest": digest.plan_digest(report, ids)}
    report["summary"] = summarise(report)
    report["verdict"] = derive_verdict(report)
    report["digest"] = digest.report_digest(report)
    return report


def from_wheel(report):
    """The same report, from a released suite and an installed wheel."""
    report = copy.deepcopy(report)
    report["suite"].update(dirty=False, digest=SUITE)
    report["provider"].update(
        distribution="vendor-chip",
        version="1.0",
        editable=False,
        record_digest=digest.digest_bytes(b"record"),
    )
    return reseal(report)


@pytest.fixture(scope="session", autouse=True)
def _suite():
    """The suite keeps its digest while its files are being worked on."""
    real = identity.suite_digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            identity, "suite_digest", lambda package=None: real(package) if package else SUITE
        )
        yield


@pytest.fixture(scope="session")
def _passed(_suite):
    return from_wheel(build_report(make_run()))


@pytest.fixture
def passed(_passed):
    """A certifiable report, for the test to change."""
    return copy.deepcopy(_passed)


@pytest.fixture
def make():
    """The tools above."""
    return SimpleNamespace(
        capability=capability, run=make_run, reseal=reseal, from_wheel=from_wheel, markup=MARKUP
    )


@pytest.fixture
def save(tmp_path):
    """Write a report, or any text, to a file and return its path."""

    def write(content, name="report.json"):
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write
