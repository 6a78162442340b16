"""Prove that the distributions share one import package without treading on one another.

Builds every wheel, looks at what is in them, then installs them into a scratch environment in
four ways (each of core and providers from a wheel or editable) and imports everything there.

    python tools/layout.py        # exit status 0, or 1 and every finding
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "packages"
LICENCE = ROOT / "LICENSE"
CORE = "sagellm-backend-core"
PROVIDERS = ("cpu", "cuda", "ascend", "kunlun")
BACKENDS = ("reference", "cpu", "cuda", "dcu", "ascend", "kunlun")
NEEDS = ("hatchling", "editables", "numpy", "ml_dtypes", "rich")

PROBE = f"""
import sys
from importlib import import_module
from importlib.metadata import entry_points

import sagellm_backend

assert sagellm_backend.__file__.endswith("__init__.py"), sagellm_backend.__file__
assert sagellm_backend.__version__
for name in {PROVIDERS!r}:
    import_module(f"sagellm_backend.{{name}}")
found = {{entry.name: entry for entry in entry_points(group="sagellm.backends")}}
assert sorted(found) == {sorted(BACKENDS)!r}, sorted(found)
for name, entry in found.items():
    assert entry.load().name == name, (name, entry.load().name)
heavy = {{"torch", "torch_npu", "paddle"}} & set(sys.modules)
assert not heavy, f"specs import {{heavy}}"
"""


def run(*command: object) -> str:
    """Run a command and return what it printed; on failure, exit with that."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"layout: {' '.join(words)}\n{done.stdout}")
    return done.stdout


def wheel_findings(wheel: Path) -> list[str]:
    """Say what a wheel holds that it should not, and what it lacks."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        licences = [archive.read(name) for name in names if name.endswith("/licenses/LICENSE")]
    owner = wheel.name.split("-")[0].removeprefix("sagellm_backend_")
    own = "sagellm_backend/" if owner == "core" else f"sagellm_backend/{owner}/"
    beside = {"sagellm_backend_installation.py"} if owner == "core" else set()
    shipped = [name for name in names if ".dist-info/" not in name and name not in beside]
    strangers = [name for name in shipped if not name.startswith(own)]
    if owner == "core":
        foreign = tuple(f"sagellm_backend/{name}/" for name in PROVIDERS)
        strangers += [name for name in shipped if name.startswith(foreign)]
    findings = [f"{wheel.name} holds {name}, outside {own}" for name in strangers]
    if licences != [LICENCE.read_bytes()]:
        findings.append(f"{wheel.name} does not carry the LICENSE of the repository")
    needed = [f"{own}__init__.py", f"{own}py.typed", *beside]
    return findings + [f"{wheel.name} lacks {name}" for name in needed if name not in names]


def probe(python: Path, wheels: dict[str, Path], editable: frozenset[str], cwd: Path) -> None:
    """Install every distribution, those in ``editable`` from source, and import them all."""
    run(python, "-m", "pip", "uninstall", "--yes", "--quiet", *wheels)
    words: list[object] = []
    for name, wheel in wheels.items():
        words += ["--editable", PACKAGES / name] if name in editable else [wheel]
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *words)
    script = cwd / "probe.py"
    script.write_text(PROBE, encoding="utf-8")
    run(python, "-I", "-W", "error", script)


def main() -> int:
    """Run every check; 1 if one finds something."""
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        venv.create(scratch / "venv", with_pip=True)
        python = scratch / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", *NEEDS)
        names = [CORE, *(f"sagellm-backend-{name}" for name in PROVIDERS)]
        sources = [PACKAGES / name for name in names]
        build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch)
        run(python, "-m", "pip", *build, *sources)
        built = {
            wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in scratch.glob("*.whl")
        }
        wheels = {name: built[name] for name in names}

        findings = [text for wheel in wheels.values() for text in wheel_findings(wheel)]
        if findings:
            print(*findings, sep="\n")
            return 1
        print(f"{len(wheels)} wheels hold their own files only")
        core, providers = frozenset(names[:1]), frozenset(names[1:])
        for some, others in itertools.product((frozenset(), core), (frozenset(), providers)):
            probe(python, wheels, some | others, scratch)
            editable = ", ".join(name for name in names if name in some | others)
            print(f"imports and entry points work; editable: {editable or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
