"""Another distribution has files of our package: what is said, and by what."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sagellm_backend_installation as installation

OWN = Path(installation.__file__)
OURS, THEIRS = "sagellm-backend-core", "isagellm-backend"


class Site:
    """A folder of installed packages, ours among them."""

    def __init__(self, folder):
        self.folder = folder
        (folder / OWN.name).write_bytes(OWN.read_bytes())
        package = folder / "sagellm_backend"
        package.mkdir()
        (package / "errors.py").write_bytes((OWN.parent / "sagellm_backend/errors.py").read_bytes())
        (package / "__init__.py").write_text(
            "from sagellm_backend_installation import require_whole\nrequire_whole()\nours = 1\n"
        )
        (package / "cli.py").write_text("def main():\n    print('the command')\n    return 0\n")
        files = ["__init__.py", "errors.py", "cli.py"]
        self.distribution(OURS, [f"sagellm_backend/{name}" for name in files])

    def distribution(self, name, files=()):
        info = self.folder / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        rows = [f"{info.name}/RECORD,,"]
        for file in files:
            digest = hashlib.sha256((self.folder / file).read_bytes()).digest()
            code = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            rows.append(f"{file},sha256={code},1")
        (info / "RECORD").write_text("\n".join(rows))

    def run(self, *words):
        # Isolated and without site, so that the folder is all there is.
        code = f"import sys; sys.path.insert(0, {str(self.folder)!r}); {'; '.join(words)}"
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], check=False, capture_output=True, text=True
        )

    def command(self, *options):
        return self.run(
            f"sys.argv = {['sagellm-backend', *options]!r}",
            "from sagellm_backend_installation import main",
            "sys.exit(main())",
        )


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_what_is_whole_is_left_alone(site):
    assert site.run("import sagellm_backend as s", "print(s.ours)").stdout == "1\n"
    done = site.command("doctor")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the command\n", "")


def test_the_first_import_refuses_the_other_package(site):
    site.distribution(THEIRS)
    done = site.run("import sagellm_backend")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "sagellm_backend.errors.PackageClashError: isagellm-backend is installed"
    )
    assert "pip uninstall isagellm-backend" in last
    assert f"pip install --force-reinstall --no-deps {OURS}" in last


def test_the_error_is_an_import_error(site):
    site.distribution(THEIRS)
    done = site.run(
        "exec('try:\\n import sagellm_backend\\nexcept ImportError as error:\\n print(error.code.value)')"
    )
    assert done.stdout == "unavailable\n"


def test_the_command_speaks_where_the_package_cannot(site):
    site.distribution(THEIRS)
    (site.folder / "sagellm_backend/__init__.py").write_text("raise OSError('not ours')")
    done = site.command("doctor")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("isagellm-backend is installed beside sagellm-backend-*")
    assert f"--no-deps {OURS}\n" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "foreign"])
def test_what_the_removal_leaves_is_named(site, damage):
    site.distribution("sagellm-backend-cpu")
    file = site.folder / "sagellm_backend/__init__.py"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("theirs = 1")
    done = site.command("doctor")
    assert done.returncode == 1
    assert "Files of sagellm-backend-core are missing or not its own" in done.stderr
    assert "sagellm_backend/__init__.py" in done.stderr
    assert "--no-deps sagellm-backend-core sagellm-backend-cpu" in done.stderr


def test_as_data(site):
    (site.folder / "sagellm_backend/__init__.py").unlink()
    (site.folder / "sagellm_backend/errors.py").unlink()
    found = json.loads(site.command("doctor", "--json").stdout)
    assert found["error"] == "PackageClashError"
    assert "and 1 more" in found["message"]
    assert "--force-reinstall" in found["hint"]


def test_an_archive_is_not_looked_into(monkeypatch):
    monkeypatch.setattr(installation, "__file__", "/nowhere/archive.zip/module.py")
    installation.require_whole()


def test_the_look_costs_little(tmp_path, monkeypatch):
    for number in range(500):
        (tmp_path / f"package_{number}-1.0.dist-info").mkdir()
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "module.py"))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        installation.require_whole()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005


def test_this_environment_is_whole():
    assert installation.problem() is None
