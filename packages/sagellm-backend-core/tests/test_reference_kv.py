"""Reference provider: KV pools and copies between memories."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import (
    CapabilityError,
    DeadlineExceededError,
    InvalidArgumentError,
    KVTransferError,
    OutOfMemoryError,
)
from sagellm_backend.kv import KVLayout
from sagellm_backend.kv.layout import ORDERS, PACKINGS
from sagellm_backend.reference.provider import create_reference_backend

DTYPES = [DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8]
LAYOUT = KVLayout(num_layers=2, num_kv_heads=3, head_dim=16, block_size=4, dtype=DType.FP16)
BLOCKS = 7
PLACES = ["device", "reference:1", "host"]


@pytest.fixture
def backend():
    with create_reference_backend() as made:
        yield made


def fill(pool, seed):
    """Random bytes in every block, as they must arrive elsewhere."""
    pool.pages[:] = np.random.default_rng(seed).integers(0, 256, pool.pages.shape, np.uint8)


def caches(pool):
    return [cache(layer) for layer in range(2) for cache in (pool.key_cache, pool.value_cache)]


def cache_bytes(backend, pool, ids):
    """What a reader of the caches sees of some blocks."""
    return b"".join(backend.to_numpy(cache)[ids].tobytes() for cache in caches(pool))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source_place", PLACES)
@pytest.mark.parametrize("target_place", PLACES)
def test_copies_are_bit_exact(backend, dtype, order, packing, source_place, target_place):
    layout = replace(LAYOUT, dtype=dtype, order=order, packing=packing)
    source = backend.kv_pool(layout, BLOCKS, source_place)
    target = backend.kv_pool(layout, BLOCKS + 2, target_place)
    fill(source, 1)
    fill(target, 2)
    source.alloc(BLOCKS)
    target.alloc(BLOCKS + 2)
    reads, writes, others = [5, 0, 3], [8, 1, 2], [0, 3, 4, 5, 6, 7]
    wanted, kept = cache_bytes(backend, source, reads), cache_bytes(backend, target, others)
    whole = source.storage.memory.tobytes()
    transfer = backend.kv_copy_plan(source, target).copy(reads, writes)
    assert transfer.done()
    assert (transfer.num_blocks, transfer.nbytes) == (3, 3 * layout.page_bytes)
    assert cache_bytes(backend, target, writes) == wanted
    assert cache_bytes(backend, target, others) == kept
    assert source.storage.memory.tobytes() == whole


class TestPools:
    @pytest.mark.parametrize("packing", PACKINGS)
    @pytest.mark.parametrize("order", ORDERS)
    def test_caches_are_views_in_the_declared_order(self, backend, order, packing):
        layout = replace(LAYOUT, order=order, packing=packing)
        pool = backend.kv_pool(layout, BLOCKS)
        for number, cache in enumerate(caches(pool)):
            assert cache.shape == (BLOCKS, 4, 3, 16)
            token, head = cache.strides[1:3]
            assert (token, head) == ((96, 32) if order == "NHD" else (32, 128))
            gap = layout.block_bytes * (1 if packing == "separate" else 2)
            assert cache.strides[0] == gap
            values = np.full(cache.shape, number, np.float16)
            backend._write_back(cache, values)
        for number, cache in enumerate(caches(pool)):
            assert (backend.to_numpy(cache) == number).all()

    @pytest.mark.parametrize("alignment", [1, 64, 128])
    def test_every_block_is_aligned(self, backend, alignment):
        pool = backend.kv_pool(replace(LAYOUT, head_dim=32, alignment=alignment), BLOCKS)
        base = pool.storage.memory.ctypes.data
        assert base % alignment == 0
        assert pool.layout.block_bytes % alignment == 0

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_fresh_blocks_are_poisoned(self, backend, dtype):
        pool = backend.kv_pool(replace(LAYOUT, dtype=dtype), 2)
        values = backend.to_numpy(pool.value_cache(1)).astype(np.float32)
        assert np.isnan(values).all() if dtype.is_floating else (values == -1).all()

    def test_attention_over_unwritten_blocks_notices(self, backend):
        pool = backend.kv_pool(LAYOUT, 2)
        query = backend.from_numpy(np.ones((1, 3, 16), np.float16))
        metadata = backend.attention_metadata([1], [3], [[0]], 4)
        attention = backend.get_kernel("attention")
        result = attention(query, pool.key_cache(0), pool.value_cache(0), metadata, scale=0.25)
        assert np.isnan(backend.to_numpy(result)).all()

    def test_kv_write_changes_only_its_slots(self, backend):
        pool = backend.kv_pool(replace(LAYOUT, order="HND"), BLOCKS)
        key = backend.from_numpy(np.full((2, 3, 16), 3, np.float16))
        slots = backend.from_numpy(np.array([9, 0]))
        backend.get_kernel("kv_write")(key, key, pool.key_cache(1), pool.value_cache(1), slots)
        cache = backend.to_numpy(pool.key_cache(1)).reshape(-1, 3, 16)
        assert (cache[[9, 0]] == 3).all()
        assert np.isnan(np.delete(cache, [9, 0], axis=0)).all()
        assert np.isnan(backend.to_numpy(pool.key_cache(0))).all()

    def test_writers_of_other_blocks_do_not_undo_each_other(self, backend):
        """kv_write on one stream, a swap into the same cache on another, no order between them."""
        pool, swapped = backend.kv_pool(LAYOUT, 64), backend.kv_pool(LAYOUT, 64, "host")
        ids, saved = pool.alloc(64), swapped.alloc(64)
        swapped.pages[:] = 0
        plan = backend.kv_copy_plan(swapped, pool)
        kernel = backend.get_kernel("kv_write")
        key = backend.from_numpy(np.ones((4, 3, 16), np.float16))
        compute, copies = backend.create_stream(), backend.create_stream()
        for block in range(0, 64, 2):
            slots = backend.from_numpy(np.arange(4) + 4 * int(ids[block]))
            with compute:
                kernel(key, key, pool.key_cache(0), pool.value_cache(0), slots)
            plan.copy([saved[block + 1]], [ids[block + 1]], copies)
        backend.synchronize()
        cache = backend.to_numpy(pool.key_cache(0))
        assert (cache[ids[::2]] == 1).all()
        assert (cache[ids[1::2]] == 0).all()

    def test_bytes_are_charged_until_closed_or_collected(self, backend):
        pool = backend.kv_pool(LAYOUT, BLOCKS)
        assert backend.memory_stats()["kv_bytes"] == pool.nbytes == LAYOUT.nbytes(BLOCKS)
        pool.close()
        assert backend.memory_stats()["kv_bytes"] == 0
        pool = backend.kv_pool(LAYOUT, BLOCKS)
        del pool
        gc.collect()
        assert backend.memory_stats()["kv_bytes"] == 0

    def test_out_of_memory_leaves_nothing_behind(self):
        with create_reference_backend({"memory_limit": LAYOUT.nbytes(4)}) as backend:
            with pytest.raises(OutOfMemoryError):
                backend.kv_pool(LAYOUT, 5)
            assert backend.kv_pool(LAYOUT, 4).num_free == 4

    def test_an_alignment_beyond_the_claim_is_refused(self, backend):
        limit = backend.capability().kv.alignment
        wide = replace(LAYOUT, num_kv_heads=16, block_size=limit // 256, head_dim=16)
        assert backend.kv_pool(replace(wide, alignment=limit), 2).num_free == 2
        with pytest.raises(CapabilityError, match="alignment"):
            backend.kv_pool(replace(wide, block_size=limit // 128, alignment=2 * limit), 2)

    def test_int4_and_wide_indices_are_not_offered(self, backend):
        for change in ({"dtype": DType.INT4, "alignment": 1}, {"index_dtype": DType.INT64}):
            with pytest.raises(CapabilityError):
                backend.kv_pool(replace(LAYOUT, **change), 2)


class TestTransfers:
    @pytest.fixture
    def pools(self, backend):
        pools = backend.kv_pool(LAYOUT, BLOCKS), backend.kv_pool(LAYOUT, BLOCKS, "host")
        for seed, pool in enumerate(pools):
            pool.alloc(BLOCKS)
            fill(pool, seed)
        return pools

    def test_run_beside_the_host(self, backend, gate, pools):
        source, target = pools
        stream = backend.create_stream()
        stream.submit(gate.hold)
        ids = np.arange(3)
        transfer = backend.kv_copy_plan(source, target).copy(ids, ids, stream)
        ids[:] = 6
        before = target.pages.tobytes()
        assert not transfer.done()
        with pytest.raises(DeadlineExceededError):
            transfer.wait(0.01)
        assert target.pages.tobytes() == before
        gate.set()
        transfer.wait()
        assert cache_bytes(backend, target, [0, 1, 2]) == cache_bytes(backend, source, [0, 1, 2])
        assert (target.pages[:, :, 6] != source.pages[:, :, 6]).any()

    def test_caches_wait_for_the_copy_into_them(self, backend, gate, pools):
        source, target = pools
        stream = backend.create_stream()
        stream.submit(gate.hold)
        backend.kv_copy_plan(source, target).copy([0], [0], stream)
        threading.Timer(0.05, gate.set).start()
        assert cache_bytes(backend, target, [0]) == cache_bytes(backend, source, [0])

    @pytest.mark.parametrize("held", ["reference:0", "reference:1"])
    def test_without_a_stream_earlier_work_of_both_devices_comes_first(self, backend, gate, held):
        source, target = backend.kv_pool(LAYOUT, 1), backend.kv_pool(LAYOUT, 1, "reference:1")
        for pool in (source, target):
            pool.alloc(1)
        backend.current_stream(held).submit(gate.hold)
        for pool, value in ((source, 1), (target, 2)):
            backend._write_back(pool.key_cache(0), np.full((1, 4, 3, 16), value, np.float16))
        threading.Timer(0.05, gate.set).start()
        assert backend.kv_copy_plan(source, target).copy([0], [0]).done()
        backend.synchronize()
        assert (backend.to_numpy(target.key_cache(0)) == 1).all()

    def test_failure_is_raised_by_every_wait_and_nowhere_else(self, backend, pools):
        source, target = pools
        plan = backend.kv_copy_plan(source, target)
        target.pages.setflags(write=False)
        stream = backend.create_stream()
        transfer = plan.copy([0, 1], [0, 1], stream)
        for _ in range(2):
            with pytest.raises(KVTransferError) as error:
                transfer.wait()
        assert error.value.numbers["blocks"] == 2
        assert transfer.done()
        backend.synchronize()
        with pytest.raises(KVTransferError):
            plan.copy([0], [0])
        backend.synchronize()

    def test_failure_that_nobody_waits_for_reaches_the_stream(self, backend, pools):
        source, target = pools
        target.pages.setflags(write=False)
        stream = backend.create_stream()
        backend.kv_copy_plan(source, target).copy([0], [0], stream)
        with pytest.raises(Exception, match="read-only"):
            stream.synchronize()

    def test_streams_of_other_providers_are_refused(self, backend, pools):
        plan = backend.kv_copy_plan(*pools)
        with (
            create_reference_backend() as other,
            pytest.raises(InvalidArgumentError, match="other"),
        ):
            plan.copy([0], [0], other.create_stream())

    def test_a_pool_closed_meanwhile_harms_nothing(self, backend, gate, pools):
        source, target = pools
        stream = backend.create_stream()
        stream.submit(gate.hold)
        transfer = backend.kv_copy_plan(source, target).copy([0], [0], stream)
        source.close()
        gate.set()
        transfer.wait()
