"""CUDAProvider's own code over the simulated device: all of it but the driver.

The suite runs in processes of its own, so this one keeps its devices.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sagellm_backend.conformance.runner import run

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return tmp_path_factory.mktemp("calls") / "batches"


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    info = site / "cudasim-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cudasim\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sagellm.backends]\ncudasim = fake_cuda.backend:SPEC\n")
    return [str(site), str(TOOLS), str(Path(__file__).parent)]


def test_it_keeps_its_claims_where_the_driver_is_simulated(paths, calls, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_CALLS", str(calls))
    profiles = ["core", "stream", "kv", "graph", "attention"]
    result = run("cudasim", profiles=profiles, depth="smoke", seed=3, paths=paths)
    assert [(case.id, case.detail) for case in result.cases if not case.passed] == []
    assert {name for name, counts in result.profiles.items() if counts["passed"]} == set(profiles)
    descriptor = result.descriptor
    assert descriptor["compute_capability"] == "7.5"
    assert descriptor["has_graph_exec"]
    assert {"graph", "host_register", "pinned_memory"} <= set(descriptor["features"])
    assert [tuple(pair) for pair in descriptor["peer_access"]] == [(0, 1)]
    assert "cuda" in descriptor["versions"]
    batches = calls.read_text().split()
    assert len(batches) > 10
    assert max(map(int, batches)) > 4
