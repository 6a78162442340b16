"""KV pools of the CPU: where every byte lies, what copies move, and what is refused."""

import dataclasses
import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_backend import CPUBackendProvider, DType, KVBlock, KVLayout
from sagellm_backend.capability import Feature
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)

DTYPES = [DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8]
FORMS = [(order, packing) for order in ("NHD", "HND") for packing in ("separate", "packed")]
LAYERS, HEADS, SIZE, TOKENS, BLOCKS = 2, 3, 16, 4, 6


def layout_of(dtype=DType.BF16, order="NHD", packing="separate", **more):
    given = {"num_layers": LAYERS, "num_kv_heads": HEADS, "head_dim": SIZE, "block_size": TOKENS}
    return KVLayout(**{**given, "alignment": 64, **more}, dtype=dtype, order=order, packing=packing)


@pytest.fixture(scope="module")
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def held(backend):
    stats = backend.memory_stats()
    return stats["kv_bytes"], stats["allocated_bytes"], stats["reserved_bytes"]


def caches(pool):
    """Every cache of a pool: keys and values of each layer."""
    for layer in range(pool.layout.num_layers):
        yield pool.key_cache(layer)
        yield pool.value_cache(layer)


def contents(pool):
    """All bytes by (cache, block), in the logical order of the elements."""
    rows = [torch.stack([c[block] for block in range(pool.num_blocks)]) for c in caches(pool)]
    return torch.stack(rows).view(torch.uint8).flatten(2).numpy().copy()


def fill(pool, seed):
    """Random bytes, NaN of all kinds among them; returns the contents."""
    rng = np.random.default_rng(seed)
    for cache in caches(pool):
        raw = rng.integers(0, 256, (cache.numel() * cache.element_size(),), dtype=np.uint8)
        cache.copy_(torch.from_numpy(raw).view(cache.dtype).view(cache.shape))
    return contents(pool)


def pair(backend, dtype=DType.BF16, form=FORMS[0], blocks=(BLOCKS, BLOCKS), places=None):
    layout = layout_of(dtype, *form)
    places = places or ("device", "host")
    return [backend.kv_pool(layout, n, place) for n, place in zip(blocks, places, strict=True)]


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES)
class TestStorage:
    def test_caches_have_the_logical_shape_and_the_strides_of_their_order(
        self, backend, dtype, form
    ):
        order, packing = form
        with backend.kv_pool(layout_of(dtype, order, packing), BLOCKS) as pool:
            block = TOKENS * HEADS * SIZE
            inner = (HEADS * SIZE, SIZE, 1) if order == "NHD" else (SIZE, TOKENS * SIZE, 1)
            outer = block if packing == "separate" else 2 * block
            for cache in caches(pool):
                assert tuple(cache.shape) == (BLOCKS, TOKENS, HEADS, SIZE)
                assert DType.parse(cache.dtype) is dtype
                assert cache.stride() == (outer, *inner)

    def test_every_element_has_bytes_of_its_own(self, backend, dtype, form):
        with backend.kv_pool(layout_of(dtype, *form), BLOCKS) as pool:
            places = []
            for cache in caches(pool):
                at = sum(
                    stride * torch.arange(size).view(-1, *[1] * (3 - axis))
                    for axis, (size, stride) in enumerate(
                        zip(cache.shape, cache.stride(), strict=True)
                    )
                )
                places.append((cache.data_ptr() + at.flatten() * cache.element_size()).numpy())
            found = np.sort(np.concatenate(places))
            assert (np.diff(found) == cache.element_size()).all()
            assert found.size * cache.element_size() == pool.nbytes

    def test_writing_one_block_changes_no_other(self, backend, dtype, form):
        with backend.kv_pool(layout_of(dtype, *form), BLOCKS) as pool:
            before = fill(pool, 1)
            for row, cache in enumerate(caches(pool)):
                cache[3].view(torch.uint8).bitwise_not_()
                after = contents(pool)
                assert (after[row, 3] == ~before[row, 3]).all()
                after[row, 3] = before[row, 3]
                assert (after == before).all()
                cache[3].view(torch.uint8).bitwise_not_()

    def test_copies_are_bit_exact_between_device_and_host(self, backend, dtype, form):
        source, target = pair(backend, dtype, form)
        with source, target:
            source_ids, target_ids = source.alloc(4)[[2, 0, 3]], target.alloc(BLOCKS)[[5, 1, 0]]
            read, wanted = fill(source, 2), fill(target, 3)
            transfer = backend.kv_copy_plan(source, target).copy(source_ids, target_ids)
            transfer.wait()
            assert transfer.done()
            assert (transfer.num_blocks, transfer.nbytes) == (3, 3 * source.layout.page_bytes)
            wanted[:, target_ids] = read[:, source_ids]
            assert (contents(target) == wanted).all()
            assert (contents(source) == read).all()

    def test_kernels_write_and_read_the_caches_as_they_lie(self, backend, dtype, form):
        if dtype not in backend.capability().operations["kv_write"]:
            with pytest.raises(CapabilityError):
                backend.get_kernel("kv_write", dtype=dtype)
            return
        with backend.kv_pool(layout_of(dtype, *form), BLOCKS) as pool:
            wanted = fill(pool, 4)
            rng = np.random.default_rng(5)
            key, value = (
                backend.from_numpy(rng.standard_normal((3, HEADS, SIZE)).astype(dtype.numpy))
                for _ in range(2)
            )
            slots = backend.from_numpy(np.array([1, 23, 8], np.int64))
            backend.get_kernel("kv_write", dtype=dtype)(
                key, value, pool.key_cache(1), pool.value_cache(1), slots
            )
            for token, slot in enumerate((1, 23, 8)):
                block, offset = divmod(slot, TOKENS)
                for row, new in ((2, key), (3, value)):
                    bytes_of = wanted[row, block].reshape(TOKENS, -1)
                    bytes_of[offset] = new[token].view(torch.uint8).flatten().numpy()
            assert (contents(pool) == wanted).all()


@pytest.mark.parametrize("alignment", [64, 128, 256])
def test_every_block_begins_at_the_alignment(backend, alignment):
    layout = layout_of(head_dim=64, alignment=alignment)
    with backend.kv_pool(layout, 3) as pool:
        starts = [block.data_ptr() for cache in caches(pool) for block in cache]
        assert {start % alignment for start in starts} == {0}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), same=st.booleans(), form=st.sampled_from(FORMS))
def test_any_batch_moves_its_blocks_and_nothing_else(data, same, form):
    backend = CPUBackendProvider()
    count = 24
    if same:
        source = target = backend.kv_pool(layout_of(DType.INT8, *form), count)
        pool_ids = source.alloc(count)
        order = data.draw(st.permutations(pool_ids.tolist()))
        length = data.draw(st.integers(0, count // 2))
        source_ids, target_ids = order[:length], order[length : 2 * length]
    else:
        source, target = pair(backend, DType.INT8, form, (count, count + 3))
        length = data.draw(st.integers(0, count))
        source_ids = data.draw(st.permutations(source.alloc(count).tolist()))[:length]
        target_ids = data.draw(st.permutations(target.alloc(count + 3).tolist()))[:length]
    if data.draw(st.booleans()):  # neighbours, which are copied as runs
        source_ids, target_ids = sorted(source_ids), sorted(target_ids)
    read, wanted = fill(source, 6), fill(target, 6 if same else 7)
    backend.kv_copy_plan(source, target).copy(np.array(source_ids, np.int32), target_ids)
    wanted[:, target_ids] = read[:, source_ids]
    assert (contents(target) == wanted).all()
    if not same:
        assert (contents(source) == read).all()


class TestCopyPlan:
    def test_one_plan_copies_many_times(self, backend):
        source, target = pair(backend)
        with source, target:
            ids, other = source.alloc(2), target.alloc(2)
            plan = backend.kv_copy_plan(source, target)
            assert plan.direction == "device-to-host"
            assert backend.kv_copy_plan(target, source).direction == "host-to-device"
            for seed in (1, 2):
                read = fill(source, seed)
                plan.copy(ids, other, backend.create_stream())
                assert (contents(target)[:, other] == read[:, ids]).all()

    @pytest.mark.parametrize("empty", [[], (), range(0), np.empty(0, np.int32)])
    def test_an_empty_batch_is_nothing(self, backend, empty):
        source, target = pair(backend)
        with source, target:
            before = fill(target, 1)
            transfer = backend.kv_copy_plan(source, target).copy(empty, empty)
            transfer.wait()
            assert (transfer.done(), transfer.num_blocks, transfer.nbytes) == (True, 0, 0)
            assert (contents(target) == before).all()

    @pytest.mark.parametrize(
        ("source_ids", "target_ids"),
        [
            pytest.param([0, 0], [0, 1], id="duplicate sources"),
            pytest.param([0, 1], [1, 1], id="duplicate targets"),
            pytest.param([0, 1], [0], id="unequal"),
            pytest.param([0], [], id="none"),
            pytest.param([5], [0], id="free source"),
            pytest.param([0], [5], id="free target"),
            pytest.param([BLOCKS], [0], id="source outside"),
            pytest.param([0], [-1], id="target outside"),
            pytest.param([0.0], [0], id="float"),
            pytest.param([True], [0], id="bool"),
            pytest.param("0", [0], id="text"),
            pytest.param(None, None, id="nothing"),
            pytest.param([[0]], [[0]], id="nested"),
            pytest.param([10**30], [0], id="huge"),
        ],
    )
    def test_batches_that_are_wrong_move_nothing(self, backend, source_ids, target_ids):
        source, target = pair(backend)
        with source, target:
            source.alloc(4)
            target.alloc(4)
            read, before = fill(source, 1), fill(target, 2)
            with pytest.raises(InvalidArgumentError):
                backend.kv_copy_plan(source, target).copy(source_ids, target_ids)
            assert (contents(target) == before).all()
            assert (contents(source) == read).all()

    def test_within_one_pool_no_block_is_both(self, backend):
        with backend.kv_pool(layout_of(), BLOCKS) as pool:
            pool.alloc(BLOCKS)
            before = fill(pool, 1)
            plan = backend.kv_copy_plan(pool, pool)
            for source_ids, target_ids in (([0, 1], [1, 2]), ([3], [3]), ([4, 5], [5, 4])):
                with pytest.raises(InvalidArgumentError, match="both source and target"):
                    plan.copy(source_ids, target_ids)
            assert (contents(pool) == before).all()

    def test_pools_and_streams_of_others_are_refused(self, backend):
        source, target = pair(backend)
        with CPUBackendProvider() as other, source, target:
            stranger = other.kv_pool(layout_of(), BLOCKS)
            for pools in ((source, stranger), (stranger, target)):
                with pytest.raises(InvalidArgumentError, match="another provider"):
                    backend.kv_copy_plan(*pools)
            ids, before = source.alloc(1), fill(target, 1)
            plan = backend.kv_copy_plan(source, target)
            for stream in (other.create_stream(), "stream", 0, object()):
                with pytest.raises(InvalidArgumentError):
                    plan.copy(ids, target.alloc(1), stream)
            assert (contents(target) == before).all()

    @pytest.mark.parametrize("junk", [None, 0, "pool", object(), KVLayout])
    def test_what_is_no_pool_is_refused(self, backend, junk):
        with backend.kv_pool(layout_of(), 1) as pool:
            for pools in ((pool, junk), (junk, pool)):
                with pytest.raises(InvalidArgumentError, match="must be a KVPool"):
                    backend.kv_copy_plan(*pools)

    @pytest.mark.parametrize(
        "change",
        [{"dtype": DType.FP16}, {"order": "HND"}, {"packing": "packed"}, {"head_dim": 32}],
        ids=lambda change: next(iter(change)),
    )
    def test_layouts_that_differ_are_refused(self, backend, change):
        layout = layout_of()
        with (
            backend.kv_pool(layout, 1) as source,
            backend.kv_pool(dataclasses.replace(layout, **change), 1) as target,
            pytest.raises(InvalidArgumentError, match="layouts of the two pools differ"),
        ):
            backend.kv_copy_plan(source, target)

    def test_alignment_may_differ(self, backend):
        source = backend.kv_pool(layout_of(), 2)
        target = backend.kv_pool(layout_of(alignment=1), 2)
        read = fill(source, 1)
        backend.kv_copy_plan(source, target).copy(source.alloc(2), target.alloc(2))
        assert (contents(target) == read).all()

    def test_copies_from_or_to_a_closed_pool_are_refused(self, backend):
        for closed in (0, 1):
            pools = pair(backend)
            ids = [pool.alloc(1) for pool in pools]
            plan = backend.kv_copy_plan(*pools)
            before = fill(pools[1 - closed], 1)
            pools[closed].close()
            with pytest.raises(UnavailableError, match="closed"):
                plan.copy(*ids)
            assert (contents(pools[1 - closed]) == before).all()
            pools[1 - closed].close()

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), None, "1", 10**400, True])
    def test_a_timeout_that_is_none_is_refused(self, backend, timeout):
        source, target = pair(backend)
        with source, target:
            transfer = backend.kv_copy_plan(source, target).copy([], [])
            with pytest.raises(InvalidArgumentError, match="timeout_s"):
                transfer.wait(timeout)


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


def test_the_cpu_declares_pools_and_no_peers(backend):
    features = backend.capability().features
    assert {Feature.KV_POOL, Feature.KV_HOST_POOL} <= features
    assert Feature.KV_PEER_COPY not in features
