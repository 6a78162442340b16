"""Makes ``fake_cuda`` importable; fixtures for fake tensors of device ``cuda``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / "tools" / "simdev" / "build.py"
sys.path.append(str(HERE))

from fake_cuda.tensors import module  # noqa: E402 - it lives here

from sagellm_backend.cuda import startup  # noqa: E402
from sagellm_backend.cuda.provider import CUDAProvider, DCUProvider  # noqa: E402


@pytest.fixture(scope="module")
def guard():
    """Let a torch that was built without CUDA index and write its fakes."""
    if not torch.backends.cuda.is_built():
        # By its path: importing the package would give this process another device.
        spec = importlib.util.spec_from_file_location("simdev_build", BUILD)
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        torch.ops.load_library(build.library("cuda_guard.cpp"))


@pytest.fixture
def pageable(monkeypatch):
    """Fakes cannot be pinned: the way of a torch without pinned memory is taken."""

    def refuse(tensor):
        raise RuntimeError("no pinned memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)


@pytest.fixture(params=[CUDAProvider, DCUProvider], ids=["cuda", "dcu"])
def provider(request, monkeypatch):
    monkeypatch.setattr(startup, "begin", lambda *_: None)
    monkeypatch.setattr(startup, "occupy", lambda *_: None)
    return type("Fake", (request.param,), {"module": module()})()
