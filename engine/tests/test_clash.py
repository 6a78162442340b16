"""isagellm-backend beside our packages: what pip leaves, and who says so."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

THEIRS = "isagellm-backend==0.5.4.17"
WHEELS = os.environ["SAGELLM_WHEELS"].split(os.pathsep)  # given by nox
BESIDE = "isagellm-backend is installed beside sagellm-backend-*"


class Environment:
    """A scratch environment with our packages, or theirs, or both; what they need is borrowed."""

    def __init__(self, folder):
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv/bin/python"
        self.site = next((folder / "venv/lib").glob("python*/site-packages"))
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for path in Path(next(p for p in sys.path if p.endswith("site-packages"))).iterdir():
            if not path.name.startswith(("sagellm_backend", "isagellm_backend", "__pycache__")):
                (borrowed / path.name).symlink_to(path)
        (self.site / "borrowed.pth").write_text(f"{borrowed}\n")

    def pip(self, *words):
        command = [sys.executable, "-m", "pip", "--python", self.python, *words]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def install(self, *what):
        self.pip("install", "--quiet", "--no-deps", "--force-reinstall", *what)

    def remove_theirs(self):
        self.pip("uninstall", "--quiet", "--yes", "isagellm-backend")

    def first_import(self):
        return self._run("-c", "import sagellm_backend as s; print(s.get_provider('cpu').name)")

    def doctor(self):
        return self._run(self.python.with_name("sagellm-backend"), "doctor")

    def _run(self, *words):
        return subprocess.run(
            [self.python, *words], check=False, capture_output=True, text=True, timeout=120
        )


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path)


def assert_works(environment):
    found = environment.first_import()
    assert found.stdout == "cpu\n", found.stderr
    assert environment.doctor().returncode == 0


def assert_refused(environment):
    found = environment.first_import()
    assert found.returncode
    assert f"PackageClashError: {BESIDE}" in found.stderr
    examined = environment.doctor()
    assert (examined.returncode, examined.stdout) == (1, "")
    assert examined.stderr.startswith(BESIDE)
    assert "pip uninstall isagellm-backend" in examined.stderr
    assert "--force-reinstall --no-deps sagellm-backend-core sagellm-backend-cpu" in examined.stderr


def test_theirs_first(environment):
    environment.install(THEIRS)
    environment.install(*WHEELS)
    assert_refused(environment)


def test_ours_first_and_the_way_back(environment):
    environment.install(*WHEELS)
    assert_works(environment)
    environment.install(THEIRS)
    assert_refused(environment)
    environment.remove_theirs()
    examined = environment.doctor()
    assert examined.returncode == 1
    assert "Files of sagellm-backend-core are missing or not its own" in examined.stderr
    assert "sagellm_backend/__init__.py" in examined.stderr
    assert "pip install --force-reinstall --no-deps sagellm-backend-core" in examined.stderr
    environment.install(*WHEELS)
    assert_works(environment)
