"""KV pools of the CPU: what they are charged, how blocks are shared out, and what is refused."""

import dataclasses
import gc

import pytest
from kv_pools import BLOCKS, LAYERS, TOKENS, held, layout_of

from sagellm_backend import CPUBackendProvider, DType
from sagellm_backend.capability import Feature
from sagellm_backend.errors import (
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)


class TestPool:
    def test_its_bytes_are_charged_until_it_is_closed(self, backend):
        before = held(backend)
        for place in ("device", "host", "cpu:0"):
            pool = backend.kv_pool(layout_of(), BLOCKS, place)
            assert pool.location == ("host" if place == "host" else "device")
            assert held(backend) == tuple(value + pool.nbytes for value in before)
            pool.close()
            assert held(backend) == before
            pool.close()
            assert held(backend) == before

    def test_garbage_collection_gives_it_back(self, backend):
        before = held(backend)
        pool = backend.kv_pool(layout_of(), BLOCKS)
        plan = backend.kv_copy_plan(pool, pool)
        nbytes = pool.nbytes
        del pool
        assert held(backend)[0] == before[0] + nbytes, "a plan needs its pools"
        del plan
        gc.collect()
        assert held(backend) == before

    def test_closed_it_refuses_everything(self, backend):
        pool = backend.kv_pool(layout_of(), BLOCKS)
        ids = pool.alloc(2)
        pool.close()
        for call in (
            lambda: pool.alloc(1),
            lambda: pool.alloc_tokens(1),
            lambda: pool.free(ids),
            lambda: pool.retain(ids),
            lambda: pool.references(ids),
            lambda: pool.require_held(ids),
            lambda: pool.key_cache(0),
            lambda: pool.value_cache(0),
        ):
            with pytest.raises(UnavailableError, match="closed"):
                call()

    def test_it_shares_out_blocks_by_count_and_by_tokens(self, backend):
        with backend.kv_pool(layout_of(), BLOCKS) as pool:
            ids = pool.alloc_tokens(2 * TOKENS + 1)
            assert ids.size == 3
            pool.retain(ids[:1])
            assert pool.references(ids).tolist() == [2, 1, 1]
            assert pool.free(ids) == 2
            assert pool.alloc_tokens(0).size == 0
            with pytest.raises(OutOfMemoryError) as caught:
                pool.alloc(BLOCKS)
            numbers = {"requested": BLOCKS, "free": BLOCKS - 1, "limit": BLOCKS}
            assert caught.value.numbers == numbers

    @pytest.mark.parametrize("layer", [-1, LAYERS, None, 0.0, True, "0", [0]])
    def test_layers_that_are_not_there_are_refused(self, backend, layer):
        with backend.kv_pool(layout_of(), 1) as pool:
            for cache in (pool.key_cache, pool.value_cache):
                with pytest.raises(InvalidArgumentError, match="layer"):
                    cache(layer)

    @pytest.mark.parametrize("count", [0, -1, None, 1.0, True, "6", 1 << 31, float("nan")])
    def test_impossible_numbers_of_blocks_are_refused(self, backend, count):
        before = held(backend)
        with pytest.raises(InvalidArgumentError, match="num_blocks"):
            backend.kv_pool(layout_of(), count)
        assert held(backend) == before

    def test_a_pool_beyond_the_limit_is_refused_and_the_next_one_fits(self):
        layout = layout_of()
        backend = CPUBackendProvider({"memory_limit": 8 * layout.page_bytes})
        before = held(backend)
        with pytest.raises(OutOfMemoryError) as caught:
            backend.kv_pool(layout, 9)
        assert caught.value.numbers["requested"] == 9 * layout.page_bytes
        assert caught.value.numbers["free"] == 8 * layout.page_bytes
        assert held(backend) == before
        backend.kv_pool(layout, 8).close()

    @pytest.mark.parametrize(
        "change",
        [
            {"dtype": DType.INT4, "alignment": 32},
            {"dtype": DType.INT64},
            {"index_dtype": DType.INT64},
        ],
        ids=["int4", "int64", "index"],
    )
    def test_layouts_that_are_not_offered_are_refused(self, backend, change):
        before = held(backend)
        with pytest.raises(CapabilityError, match="KV"):
            backend.kv_pool(dataclasses.replace(layout_of(), **change), 1)
        assert held(backend) == before

    def test_no_pool_comes_from_a_closed_provider(self):
        backend = CPUBackendProvider()
        pool = backend.kv_pool(layout_of(), 2)
        backend.close()
        with pytest.raises(UnavailableError):
            backend.kv_pool(layout_of(), 1)
        pool.close()
        assert backend.memory_stats()["kv_bytes"] == 0


def test_the_cpu_declares_pools_and_no_peers(backend):
    features = backend.capability().features
    assert {Feature.KV_POOL, Feature.KV_HOST_POOL} <= features
    assert Feature.KV_PEER_COPY not in features
