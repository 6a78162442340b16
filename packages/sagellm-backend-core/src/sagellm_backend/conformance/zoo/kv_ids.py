"""Faults of block ids."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.conformance.zoo.parts import OwnKV
from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.hooks import Place
from sagellm_backend.kv import BlockAllocator, BlockIds, KVLayout, KVPool
from sagellm_backend.kv.blocks import out_of_blocks
from sagellm_backend.reference.kv import ReferenceKVPool

_HISTORY = "kv.any_history_of_a_pool_is_that_of_the_model"


class _Partial(BlockAllocator):
    def alloc(self, count: int) -> BlockIds:
        return super().alloc(min(count, max(self.num_free, 1)))


@member(
    "kv",
    "An allocation gives what is left when that is too little",
    kills=("kv.alloc_is_all_or_nothing",),
)
class AllocGivesWhatIsLeft(OwnKV):
    allocator = _Partial


class _Losing(BlockAllocator):
    def alloc(self, count: int) -> BlockIds:
        try:
            return super().alloc(count)
        except OutOfMemoryError:
            super().alloc(self.num_free)
            raise


@member(
    "kv",
    "A refused allocation loses the blocks that were left",
    kills=("kv.alloc_is_all_or_nothing",),
)
class AllocLosesTheRest(OwnKV):
    allocator = _Losing


class _Untyped(BlockAllocator):
    def alloc(self, count: int) -> BlockIds:
        if count > self.num_free:
            raise MemoryError("no blocks")
        return super().alloc(count)


@member("kv", "Exhaustion is a plain MemoryError", kills=("kv.alloc_is_all_or_nothing",))
class AllocFailsUntyped(OwnKV):
    allocator = _Untyped


class _Repeating(BlockAllocator):
    def alloc(self, count: int) -> BlockIds:
        ids = super().alloc(count)
        if ids.size > 1:
            ids[-1] = ids[0]
        return ids


@member(
    "kv",
    "A batch names one block twice",
    kills=("kv.ids_are_distinct_and_the_callers",),
)
class AllocRepeatsBlocks(OwnKV):
    allocator = _Repeating


class _Wide(BlockAllocator):
    def alloc(self, count: int) -> Any:
        return super().alloc(count).astype(np.int64)


@member("kv", "Block ids are int64", kills=("kv.ids_are_distinct_and_the_callers",))
class AllocGivesInt64(OwnKV):
    allocator = _Wide


class _RoundingDown(ReferenceKVPool):
    def alloc_tokens(self, num_tokens: int) -> BlockIds:
        return self.alloc(num_tokens // self.layout.block_size)


@member("kv", "Tokens are rounded down to blocks", kills=("kv.tokens_take_whole_blocks",))
class TokensRoundDown(OwnKV):
    pool = _RoundingDown


class _Lenient(BlockAllocator):
    def _require_held(self, ids: Any) -> None:
        del ids

    def free(self, ids: Any) -> int:
        held = np.unique(ids)
        return super().free(held[self.references(held) > 0])


@member(
    "kv",
    "Freeing a block twice is silent",
    kills=("kv.free_refuses_what_is_not_held",),
)
class FreeIsLenient(OwnKV):
    allocator = _Lenient


class _Forgetful(BlockAllocator):
    def free(self, ids: Any) -> int:
        self.require_held(ids)
        self._references[np.asarray(ids, np.int64)] = 1
        return super().free(ids)


@member(
    "kv",
    "The first free drops all references",
    kills=("kv.references_are_counted",),
)
class FreeDropsAllReferences(OwnKV):
    allocator = _Forgetful


class _OneMore(BlockAllocator):
    def retain(self, ids: Any) -> None:
        super().retain(ids)
        self._references[np.asarray(ids, np.int64)] += 1


@member("kv", "A retain counts twice", kills=("kv.references_are_counted",))
class RetainCountsTwice(OwnKV):
    allocator = _OneMore


class _Leaking(BlockAllocator):
    def free(self, ids: Any) -> int:
        count = super().free(ids)
        if count > 2:
            super().alloc(1)
        return count


@member("kv", "A block of a large batch is lost when it is freed", kills=(_HISTORY,))
class FreeLosesOneBlock(OwnKV):
    allocator = _Leaking


_shared: dict[int, BlockAllocator] = {}


@member(
    "kv",
    "All pools of one size count their blocks together",
    kills=("kv.pools_do_not_know_each_others_blocks",),
)
class PoolsShareIds(OwnKV):
    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        made = super()._kv_pool(layout, num_blocks, place)
        made._blocks = _shared.setdefault(num_blocks, made._blocks)
        return made


class _Unlocked:
    """A lock that locks nothing."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _Racing(BlockAllocator):
    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks)
        self._lock = _Unlocked()  # type: ignore[assignment]

    def alloc(self, count: int) -> BlockIds:
        rest = self._num_free - count
        ids = self._free[max(rest, 0) : self._num_free].copy()
        threading.Event().wait(1e-4)
        if rest < 0:
            raise out_of_blocks(count, self._num_free, self._num_blocks)
        self._references[ids] = 1
        self._num_free = rest
        return ids


@member(
    "kv",
    "Threads that allocate at once get the same blocks",
    kills=("kv.threads_get_blocks_of_their_own",),
)
class AllocRaces(OwnKV):
    allocator = _Racing
