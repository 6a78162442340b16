"""What a provider does not declare is refused by name, and host memory is counted apart."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_backend.capability import Feature
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, OutOfMemoryError
from sagellm_backend.kv import KVLayout
from sagellm_backend.reference.provider import create_reference_backend

LAYOUT = KVLayout(num_layers=1, num_kv_heads=2, head_dim=16, block_size=4, dtype=DType.FP16)


@pytest.fixture
def backend():
    with create_reference_backend({"memory_limit": LAYOUT.nbytes(8)}) as made:
        yield made


@pytest.mark.parametrize(
    ("feature", "call"),
    [
        (Feature.GRAPH, lambda b: b.capture(print, {})),
        (Feature.HOST_REGISTER, lambda b: b.register_host_memory(np.zeros(4))),
        (Feature.KV_EXPORT, lambda b: b.kv_export(b.kv_pool(LAYOUT, 1))),
        (Feature.KV_EXPORT, lambda b: b.kv_open(b"handle")),
        (Feature.COLLECTIVE, lambda b: b.communicator()),
    ],
    ids=["capture", "register_host_memory", "kv_export", "kv_open", "communicator"],
)
def test_an_undeclared_feature_is_refused_by_its_name(backend, feature, call):
    assert not backend.capability().supports_feature(feature)
    with pytest.raises(CapabilityError) as refusal:
        call(backend)
    assert refusal.value.feature == feature.value
    assert refusal.value.provider == "reference"
    assert "Declared are" in str(refusal.value)


def test_alone_the_v01_collectives_need_no_group(backend):
    array = backend.from_numpy(np.arange(3, dtype=np.float32))
    assert backend.all_reduce(array, "sum") is None
    assert backend.to_numpy(array).tolist() == [0, 1, 2]
    assert backend.all_gather(array).shape == (1, 3)


def test_a_host_pool_takes_nothing_from_the_device(backend):
    with backend.kv_pool(LAYOUT, 20, "host"), backend.kv_pool(LAYOUT, 8):
        assert backend.memory_stats()["kv_bytes"] == LAYOUT.nbytes(8)
        assert backend.memory_stats("host")["kv_bytes"] == LAYOUT.nbytes(20)
        with pytest.raises(OutOfMemoryError):
            backend.kv_pool(LAYOUT, 1)
    assert backend.memory_stats()["kv_bytes"] == 0
    assert backend.memory_stats("host")["kv_bytes"] == 0


def test_each_device_has_its_own_account(backend):
    with backend.kv_pool(LAYOUT, 8, "reference:1"):
        assert backend.memory_stats()["allocated_bytes"] == 0
        assert backend.memory_stats("reference:1")["allocated_bytes"] == LAYOUT.nbytes(8)
        backend.kv_pool(LAYOUT, 8).close()
