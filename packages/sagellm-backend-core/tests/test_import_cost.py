"""Importing core and listing backends cost little and bring in no framework."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sagellm_backend

SOURCE = Path(sagellm_backend.__file__).parents[1]
FRAMEWORKS = {"torch", "paddle", "torch_npu", "rich", "ml_dtypes"}

MEASURE = """
import json, sys, time
import numpy
def rss():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if "VmRSS" in line)
    except OSError:
        return 0
before, start = rss(), time.process_time()
{statement}
took, grown = time.process_time() - start, rss() - before
print(json.dumps([took, grown, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""


def measure(statement, path=()):
    """Processor seconds, bytes and top-level modules of a statement in a Python that has NumPy."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(SOURCE)])}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
        env=environ,
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_importing_costs_little():
    runs = [measure("import sagellm_backend") for _ in range(5)]
    seconds, grown = (min(run[index] for run in runs) for index in (0, 1))
    assert seconds < 0.060
    assert grown < 30e6


def test_the_facade_imports_no_framework():
    statement = "from sagellm_backend import get_provider, CapabilityDescriptor, DType, Feature"
    assert not FRAMEWORKS & set(measure(statement)[2])


@pytest.mark.parametrize("command", ["list --json", "doctor --json"])
def test_listing_imports_no_framework(command, tmp_path):
    for name in ("torch", "paddle", "torch_npu"):
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('a framework was imported')")
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda = '12.8'\n")
    providers = [SOURCE.parents[1] / f"sagellm-backend-{name}/src" for name in ("cpu", "cuda")]
    statement = f"from sagellm_backend.cli import main; main({command.split()!r})"
    _, _, modules = measure(statement, (tmp_path, *providers))
    assert not FRAMEWORKS - {"ml_dtypes"} & set(modules)


def test_rich_comes_with_a_table_only():
    modules = measure("from sagellm_backend.cli import main; main(['list'])")[2]
    assert "rich" in modules
