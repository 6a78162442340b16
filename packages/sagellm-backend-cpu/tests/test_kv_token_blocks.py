"""KV blocks of Protocol v0.1, which are counted in tokens."""

import dataclasses

import numpy as np
import pytest
from kv_pools import BLOCKS, DTYPES, TOKENS, caches, contents, fill, held, layout_of

from sagellm_backend import CPUBackendProvider, DType, KVBlock
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)


class TestTokenBlocks:
    """Protocol v0.1's blocks."""

    @pytest.fixture
    def backend(self):
        with CPUBackendProvider({"kv_layout": layout_of(), "kv_blocks": BLOCKS}) as provider:
            yield provider

    @staticmethod
    def pages(backend, block):
        """The bytes behind a block, by cache."""
        pool, ids = backend._tokens.find(block)
        return [cache[ids.tolist()] for cache in caches(pool)]

    def test_a_block_says_what_it_is(self, backend):
        block = backend.kv_block_alloc(5, "bf16")
        assert (block.num_tokens, block.dtype, block.device) == (5, DType.BF16, "cpu")
        assert backend.memory_stats()["kv_bytes"] == 2 * layout_of().page_bytes
        backend.kv_block_free(block)
        assert backend.memory_stats()["kv_bytes"] == 0

    def test_handles_are_unique_over_providers(self, backend):
        other = CPUBackendProvider()
        made = [one.kv_block_alloc(1, DType.BF16).handle for one in (backend, other) * 3]
        assert len(set(made)) == 6

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_copy_moves_every_bit(self, backend, dtype):
        one, two = (backend.kv_block_alloc(7, dtype) for _ in range(2))
        pool, ids = backend._tokens.find(one)
        before = fill(pool, 1)
        backend.kv_block_copy(one, two)
        target = backend._tokens.find(two)[1]
        before[:, target] = before[:, ids]
        assert (contents(pool) == before).all()
        backend.kv_block_copy(one, one)
        assert (contents(pool) == before).all()

    def test_blocks_share_no_memory(self, backend):
        blocks = [backend.kv_block_alloc(TOKENS, DType.BF16) for _ in range(BLOCKS)]
        pool, _ = backend._tokens.find(blocks[0])
        for block in blocks:
            ids = backend._tokens.find(block)[1]
            for cache in caches(pool):
                cache[ids.tolist()] = block.handle % 128
        for block in blocks:
            assert all((page == block.handle % 128).all() for page in self.pages(backend, block))
        with pytest.raises(OutOfMemoryError):
            backend.kv_block_alloc(1, DType.BF16)

    def test_copies_between_blocks_that_differ_are_refused(self, backend):
        block = backend.kv_block_alloc(4, DType.BF16)
        for other in (backend.kv_block_alloc(5, DType.BF16), backend.kv_block_alloc(4, "fp16")):
            with pytest.raises(InvalidArgumentError, match="cannot be copied"):
                backend.kv_block_copy(block, other)

    def test_a_block_stays_where_it_is_or_says_why(self, backend):
        block = backend.kv_block_alloc(4, DType.BF16)
        for here in ("cpu", "cpu:0"):
            assert backend.kv_block_migrate(block, here) is block
        with pytest.raises(CapabilityError, match="migration to cuda:0"):
            backend.kv_block_migrate(block, "cuda:0")
        with pytest.raises(InvalidArgumentError):
            backend.kv_block_migrate(block, "cpu:1")
        backend.kv_block_free(block)

    def test_freed_forged_and_foreign_blocks_are_refused_and_nothing_changes(self, backend):
        other = CPUBackendProvider()
        block, freed = (backend.kv_block_alloc(4, DType.BF16) for _ in range(2))
        backend.kv_block_free(freed)
        wrong = [
            freed,
            other.kv_block_alloc(4, DType.BF16),
            dataclasses.replace(block, num_tokens=8),
            dataclasses.replace(block, dtype=DType.FP16),
            dataclasses.replace(block, device="cuda:0"),
            dataclasses.replace(block, num_tokens=np.arange(2)),
            *(KVBlock(handle, 4, DType.BF16, "cpu") for handle in (0, -1, 10**30, None, "1", [])),
            KVBlock(float(block.handle), 4, DType.BF16, "cpu"),
        ]
        fill(backend._tokens.find(block)[0], 1)
        before = held(backend), contents(backend._tokens.find(block)[0])
        for bad in wrong:
            for call in (
                lambda bad=bad: backend.kv_block_free(bad),
                lambda bad=bad: backend.kv_block_copy(bad, block),
                lambda bad=bad: backend.kv_block_copy(block, bad),
                lambda bad=bad: backend.kv_block_migrate(bad, "cpu"),
            ):
                with pytest.raises(InvalidArgumentError, match="KV block"):
                    call()
        assert held(backend) == before[0]
        assert (contents(backend._tokens.find(block)[0]) == before[1]).all()
        backend.kv_block_free(dataclasses.replace(block))

    @pytest.mark.parametrize("tokens", [0, -1, None, 1.0, True, "8", float("nan"), [8], 10**400])
    def test_impossible_token_counts_are_refused(self, backend, tokens):
        before = held(backend)
        with pytest.raises(InvalidArgumentError, match="num_tokens"):
            backend.kv_block_alloc(tokens, DType.BF16)
        assert held(backend) == before

    def test_more_tokens_than_the_pool_has_are_out_of_memory_and_make_no_pool(self, backend):
        before = held(backend)
        with pytest.raises(OutOfMemoryError) as caught:
            backend.kv_block_alloc(BLOCKS * TOKENS + 1, DType.BF16)
        assert caught.value.numbers == {"requested": 7, "free": BLOCKS, "limit": BLOCKS}
        assert held(backend) == before
        assert backend.kv_block_alloc(BLOCKS * TOKENS, DType.BF16).num_tokens == BLOCKS * TOKENS

    @pytest.mark.parametrize("dtype", [None, "fp64", DType.INT4, DType.INT64, [], 3])
    def test_dtypes_without_pools_are_refused(self, backend, dtype):
        before = held(backend)
        with pytest.raises(BackendError) as caught:
            backend.kv_block_alloc(1, dtype)
        assert isinstance(caught.value, (InvalidArgumentError, CapabilityError))
        assert held(backend) == before

    def test_the_default_pool_is_reserved_until_the_cache_is_cleared(self, backend):
        nbytes = BLOCKS * layout_of().page_bytes
        block = backend.kv_block_alloc(1, DType.BF16)
        assert backend.memory_stats()["reserved_bytes"] == nbytes
        backend.clear_cache()
        assert backend.memory_stats()["reserved_bytes"] == nbytes, "a block still lives there"
        backend.kv_block_free(block)
        assert backend.memory_stats()["reserved_bytes"] == nbytes
        backend.clear_cache()
        assert backend.memory_stats()["reserved_bytes"] == 0

    def test_a_closed_provider_takes_blocks_back_and_gives_none(self):
        backend = CPUBackendProvider({"kv_blocks": 4})
        block = backend.kv_block_alloc(1, DType.BF16)
        backend.close()
        for call in (
            lambda: backend.kv_block_alloc(1, DType.BF16),
            lambda: backend.kv_block_copy(block, block),
            lambda: backend.kv_block_migrate(block, "cpu"),
        ):
            with pytest.raises(UnavailableError):
                call()
        backend.kv_block_free(block)
        backend.clear_cache()
        assert backend.memory_stats()["reserved_bytes"] == 0
