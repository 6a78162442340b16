"""Reference provider: KV blocks of Protocol v0.1."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kv import KVLayout
from sagellm_backend.reference.provider import create_reference_backend

DTYPES = [DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8]


class TestProtocolBlocks:
    @pytest.fixture
    def backend(self):
        layout = KVLayout(num_layers=2, num_kv_heads=4, head_dim=16, block_size=4, dtype=DType.FP16)
        with create_reference_backend({"kv_layout": layout, "kv_blocks": 7}) as made:
            yield made

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_copy_and_migrate_carry_the_contents(self, backend, dtype):
        first, second = (backend.kv_block_alloc(10, dtype) for _ in range(2))
        pool, ids = backend._tokens.find(first)
        pool.pages[:] = np.random.default_rng(3).integers(0, 256, pool.pages.shape, np.uint8)
        wanted = pool.pages[:, :, ids].tobytes()
        backend.kv_block_copy(first, second)
        moved = backend.kv_block_migrate(second, "reference:1")
        assert (moved.device, moved.num_tokens, moved.dtype) == ("reference:1", 10, dtype)
        there, moved_ids = backend._tokens.find(moved)
        assert there.pages[:, :, moved_ids].tobytes() == wanted
        with pytest.raises(InvalidArgumentError):
            backend.kv_block_free(second)

    def test_memory_returns_to_the_start(self, backend):
        block = backend.kv_block_alloc(5, DType.BF16)
        assert backend.memory_stats()["kv_bytes"] > 0
        backend.kv_block_free(block)
        assert backend.memory_stats()["kv_bytes"] == 0
        assert backend.memory_stats()["reserved_bytes"] > 0
        backend.clear_cache()
        assert backend.memory_stats()["reserved_bytes"] == 0

    def test_alloc_survives_clear_cache_of_other_threads(self, backend):
        stop, failures = threading.Event(), []

        def clear():
            while not stop.is_set():
                backend.clear_cache()

        def use():
            try:
                for _ in range(300):
                    backend.kv_block_free(backend.kv_block_alloc(4, DType.INT8))
            except Exception as error:  # noqa: BLE001 - it is shown by the assertion
                failures.append(error)

        clearer = threading.Thread(target=clear)
        users = [threading.Thread(target=use) for _ in range(4)]
        for thread in (clearer, *users):
            thread.start()
        for thread in users:
            thread.join()
        stop.set()
        clearer.join()
        backend.clear_cache()
        assert not failures
        assert backend.memory_stats()["reserved_bytes"] == 0
