"""The conformance suite on the provider at L0, in processes of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from examination import CHIPS

from sagellm_backend.conformance.runner import run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Folders for the module path: this one, the device's, and the metadata of ``ascend-l0``."""
    site = tmp_path_factory.mktemp("site")
    info = site / "ascend_l0-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ascend-l0\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sagellm.backends]\nascend-l0 = l0_backend:SPEC\n")
    return [str(path) for path in (site, HERE, HERE.parents[3] / "tools")]


@pytest.mark.parametrize("chip", ["A2", "310P"])
def test_it_conforms_in_all_that_it_declares(paths, chip, monkeypatch):
    monkeypatch.setitem(os.environ, "L0_CHIP", str(CHIPS[chip]))
    profiles = ["core", "stream", "kv", "graph", "kernels", "attention", "model"]
    result = run("ascend-l0", profiles=profiles, depth="smoke", paths=paths)
    failed = [(case.id, case.outcome, case.detail) for case in result.cases if not case.passed]
    assert not failed
    assert {name for name, counts in result.profiles.items() if counts["passed"]} == set(profiles)
