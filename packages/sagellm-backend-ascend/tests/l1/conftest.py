"""Tests at L1: the real torch_npu over the simulated device, as ``nox -s ascend-sim`` has it.

Where torch_npu or the simulator is not there, nothing here is collected.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HOME = Path(os.environ.get("ASCEND_HOME_PATH", "/nonexistent"))
if find_spec("torch_npu") and (HOME / "lib64" / "ascend_sim.digest").exists():
    sys.path += [str(HERE), str(HERE.parents[3] / "tools")]
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def backend():
    """The provider, as an engine gets it."""
    from sagellm_backend import get_provider

    with get_provider("ascend-l1") as made:
        yield made


@pytest.fixture
def calls(backend):
    """Answers with what a function asks the vendor's runtime for."""
    from ascend_sim import trace

    def of(function):
        backend.synchronize()
        return trace.of(function)

    return of
