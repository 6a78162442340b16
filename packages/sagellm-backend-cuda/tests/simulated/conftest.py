"""CUDAProvider on the simulated device; it is for a whole process, so its tests stay here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS.parents[2] / "tools")]

from fake_cuda import backend as fake  # noqa: E402 - it lives here

from sagellm_backend import DType, KVLayout  # noqa: E402


@pytest.fixture
def backend():
    with fake.Simulated() as made:
        yield made


@pytest.fixture
def layout():
    return KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_size=4, dtype=DType.BF16)
