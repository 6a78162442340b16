"""Makes the modules beside the tests importable; a provider for what has to give its memory back."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch

from sagellm_backend import CPUBackendProvider

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def config():
    """What ``backend`` is made with; a file of tests may say otherwise."""
    return {}


@pytest.fixture
def backend(config):
    """A provider; when a test ends, all that it made there must be gone."""
    with CPUBackendProvider(config) as provider:
        yield provider
        if provider.memory_stats()["allocated_bytes"]:
            gc.collect()
        assert provider.memory_stats()["allocated_bytes"] == 0


@pytest.fixture
def mlp(backend):
    """Four layers of 1,024 that compiled kernels compute."""
    torch.manual_seed(0)
    norm, linear, act = (
        backend.get_kernel(name, dtype="fp32") for name in ("rms_norm", "linear", "silu_and_mul")
    )
    up, down = torch.randn(2048, 1024) / 32, torch.randn(1024, 1024) / 32
    weight = torch.ones(1024)

    def step(x):
        for _ in range(4):
            x = linear(act(linear(norm(x, weight, 1e-5), up)), down)
        return x

    return step
