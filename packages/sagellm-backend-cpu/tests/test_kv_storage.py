"""The storage of KV pools: where every byte lies, and that each is moved as it is."""

import numpy as np
import pytest
import torch
from kv_pools import (
    BLOCKS,
    DTYPES,
    FORMS,
    HEADS,
    SIZE,
    TOKENS,
    caches,
    contents,
    fill,
    layout_of,
    pair,
)

from sagellm_backend import DType
from sagellm_backend.errors import CapabilityError


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
