"""A torch device that is not the CPU, and providers on it.

The device is for a whole process, so tests of it stay in this folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
sys.path.append(str(ROOT / "tools"))

import simdev  # noqa: E402 - it lives in tools/

from sagellm_backend import DType, KVLayout  # noqa: E402
from sagellm_backend.torch_support.accelerator import AcceleratorProvider  # noqa: E402


class SimProvider(AcceleratorProvider):
    name = "sim"
    device_type = "simdev"
    module = simdev.module
    simulated = True


@pytest.fixture
def make():
    """Makes providers, of SimProvider or of a subclass with other attributes."""
    made = []

    def build(config=None, **attributes):
        cls = type("Variant", (SimProvider,), attributes) if attributes else SimProvider
        made.append(cls(config))
        return made[-1]

    yield build
    for provider in made:
        provider.close()


@pytest.fixture
def backend(make):
    return make()


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def layout():
    return KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_size=4, dtype=DType.BF16)
