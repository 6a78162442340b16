"""CUDAProvider's own code over the simulated device: all of it but the driver.

The suite runs in processes of its own, so this one keeps its devices.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sagellm_backend.conformance.runner import run

TOOLS = Path(__file__).parents[3] / "tools"

SOURCE = """
import types

import simdev

from sagellm_backend.capability import Feature
from sagellm_backend.cuda import startup
from sagellm_backend.cuda.provider import CUDAProvider
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.spec import BackendSpec, Probe

startup.begin = startup.occupy = lambda *_: None


class Simulated(CUDAProvider):
    name = "cudasim"
    device_type = "simdev"
    simulated = True
    flush_subnormals = (DType.BF16,)
    registrar = simdev.module.Registrar()
    withheld = frozenset({Feature.COLLECTIVE})
    module = types.SimpleNamespace(
        **{name: value for name, value in vars(simdev.module).items() if name[0] != "_"},
        get_device_capability=lambda device: (7, 5),
        can_device_access_peer=lambda one, other: one < other,
    )


SPEC = BackendSpec(
    name="cudasim",
    device_type="simdev",
    priority=1,
    automatic=False,
    array_framework="torch",
    probe=lambda: Probe.available(DeviceInfo(0, "one"), DeviceInfo(1, "two")),
    factory=Simulated,
    contract=(1, 0),
    package="cudasim",
)
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    (site / "cudasim.py").write_text(SOURCE)
    info = site / "cudasim-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cudasim\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sagellm.backends]\ncudasim = cudasim:SPEC\n")
    return [str(site), str(TOOLS)]


def test_it_keeps_its_claims_where_the_driver_is_simulated(paths):
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
