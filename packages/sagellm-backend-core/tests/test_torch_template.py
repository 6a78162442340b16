"""The vendor template: small, apart from ours, and conformant as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sagellm_backend.conformance.runner import run

ROOT = Path(__file__).parents[3]
TEMPLATE = ROOT / "conformance" / "template"
MOST_LINES = 60


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folders for the module path: the template's, its device's, and its metadata's."""
    project = (TEMPLATE / "pyproject.toml").read_text()
    name = re.search(r'^name = "([^"]+)"', project, re.MULTILINE)[1]
    version = re.search(r'^version = "([^"]+)"', project, re.MULTILINE)[1]
    section = re.search(r'(?s)\[project\.entry-points\."(sagellm\.backends)"\]\n(.*?)\n\n', project)
    site = tmp_path_factory.mktemp("site")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    entries = section[2].replace('"', "")
    (info / "entry_points.txt").write_text(f"[{section[1]}]\n{entries}\n")
    return [str(path) for path in (site, TEMPLATE / "src", ROOT / "tools")]


@pytest.mark.parametrize("seed", [0, 20261])
def test_it_conforms_as_it_stands_in_core_kv_and_stream(installed, seed):
    result = run(
        "acme", profiles=["core", "kv", "stream"], depth="standard", seed=seed, paths=installed
    )
    failed = [(case.id, case.outcome, case.detail) for case in result.cases if not case.passed]
    assert not failed
    assert result.conformant
    assert result.distribution == "acme-backend"
    assert {name: bool(counts["passed"]) for name, counts in result.profiles.items()} == {
        "core": True,
        "stream": True,
        "kv": True,
    }


def test_it_says_that_its_device_is_simulated(installed):
    result = run("acme", profiles=["core"], depth="smoke", paths=installed, cases=[])
    assert {device["facts"]["level"] for device in result.descriptor["devices"]} == {"L1"}


def test_its_python_fits_into_sixty_lines():
    sources = sorted(TEMPLATE.rglob("*.py"))
    lines = sum(len(path.read_text().splitlines()) for path in sources)
    assert len(sources) == 4
    assert lines <= MOST_LINES


def test_it_ships_its_own_top_level_package_only():
    (section,) = re.findall(
        r"\[tool\.hatch\.build\.targets\.wheel\]\n(.*)", (TEMPLATE / "pyproject.toml").read_text()
    )
    assert section == 'packages = ["src/acme_backend"]'
    assert [path.name for path in (TEMPLATE / "src").iterdir()] == ["acme_backend"]
    for path in TEMPLATE.rglob("*.py"):
        assert "sagellm_backend" not in path.relative_to(TEMPLATE).parts


def test_its_spec_imports_no_framework(installed):
    script = (
        "import sys; import acme_backend.spec as s; p = s.SPEC.probe(); "
        "print(p.state.value, len(p.devices), {'torch', 'simdev'} & set(sys.modules))"
    )
    core = ROOT / "packages" / "sagellm-backend-core" / "src"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[*installed, str(core)]}; {script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "available 2 set()\n"
