"""Providers on the NPU of L0.

Where the real torch_npu is installed its operators have these names, and nothing here is collected.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
if find_spec("torch_npu"):
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path += [str(HERE), str(HERE.parents[3] / "tools")]

    import npu_l0.attention
    import npu_l0.formats
    import npu_l0.hccl
    import npu_l0.kernels
    import npu_l0.module
    import torch
    from npu_l0.library import CHIP

from sagellm_backend import frameworks  # noqa: E402
from sagellm_backend.ascend import provider, startup  # noqa: E402


@pytest.fixture
def machine(monkeypatch):
    """A machine on which the stack is in order; ``machine.npu`` stands for ``torch.npu``."""
    made = ModuleType("torch_npu")
    made.npu, made._C = npu_l0.module.make(), npu_l0.hccl.EXTENSION
    versions = {"torch_npu": torch.__version__}
    real = frameworks.version_of
    monkeypatch.setitem(sys.modules, "torch_npu", made)
    monkeypatch.setattr(torch, "npu", made.npu, raising=False)
    monkeypatch.setattr(frameworks, "version_of", lambda name: versions.get(name) or real(name))
    monkeypatch.setattr(frameworks, "is_installed", lambda module: True)
    monkeypatch.setattr(provider.AscendProvider, "device_type", "simdev")
    monkeypatch.setattr(CHIP, "version", 222)
    return made


@pytest.fixture
def make(machine, monkeypatch):
    """Makes providers on a chip of a SoC version."""
    made = []

    def build(version=222, config=None):
        monkeypatch.setattr(CHIP, "version", version)
        made.append(startup.create_ascend_backend(config))
        return made[-1]

    yield build
    for item in made:
        item.close()
