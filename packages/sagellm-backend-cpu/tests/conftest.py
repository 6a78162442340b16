"""Makes the modules beside the tests importable; a provider for what has to give its memory back."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

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
