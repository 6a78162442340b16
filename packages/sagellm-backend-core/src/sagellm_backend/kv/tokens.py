"""Protocol v0.1's KV blocks, in tokens, over pools of real memory."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from sagellm_backend.checks import check_int, check_type, shown
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kv.blocks import BlockIds, out_of_blocks
from sagellm_backend.kv.copy import KVCopyPlan
from sagellm_backend.kv.layout import KVLayout
from sagellm_backend.kv.pool import KVBlock, KVPool
from sagellm_backend.memory import MemoryLedger

# One counter for the process, so that no two providers give out the same handle.
_handles = itertools.count(1)


class _Held(NamedTuple):
    block: KVBlock
    pool: KVPool
    ids: BlockIds


class TokenBlocks:
    """Runs of KV memory by token count. Thread-safe.

    One pool for each dtype and device is made when it is first needed and kept, as reserved
    memory, until :meth:`release_idle`.
    """

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        make_pool: Callable[[KVLayout, int, str], KVPool],
        make_plan: Callable[[KVPool, KVPool], KVCopyPlan],
        ledger_of: Callable[[str], MemoryLedger],
    ) -> None:
        self._layout = layout
        self._num_blocks = num_blocks
        self._make_pool = make_pool
        self._make_plan = make_plan
        self._ledger_of = ledger_of
        self._lock = threading.Lock()
        self._pools: dict[tuple[DType, str], KVPool] = {}
        self._held: dict[int, _Held] = {}

    def alloc(self, num_tokens: int, dtype: DType, device: str) -> KVBlock:
        """Memory for ``num_tokens`` on ``device``; raises :class:`OutOfMemoryError`."""
        tokens = check_int("num_tokens", num_tokens)
        needed = self._layout.blocks_for(tokens)
        if needed > self._num_blocks:
            raise out_of_blocks(needed, self._num_blocks, self._num_blocks)
        block = KVBlock(next(_handles), tokens, dtype, device)
        with self._lock:  # in one piece, so that release_idle() does not close the pool between
            pool = self._pool(dtype, device)
            ids = pool.alloc(needed)
            self._held[block.handle] = _Held(block, pool, ids)
        self._ledger_of(device).use_reserved(ids.size * pool.layout.page_bytes)
        return block

    def free(self, block: KVBlock) -> None:
        """Give the memory back; refuses what was freed or came from elsewhere."""
        check_type("block", block, KVBlock)
        with self._lock:
            _, pool, ids = self._find(block)
            del self._held[block.handle]
        pool.free(ids)
        self._ledger_of(pool.device).return_reserved(ids.size * pool.layout.page_bytes)

    def copy(self, source: KVBlock, target: KVBlock) -> None:
        """Copy the contents of ``source`` over those of ``target``; both keep their owners."""
        from_pool, from_ids = self.find(source)
        to_pool, to_ids = self.find(target)
        if source.dtype != target.dtype or source.num_tokens != target.num_tokens:
            raise InvalidArgumentError(
                f"A block of {source.num_tokens} tokens of {source.dtype.value} cannot be copied "
                f"to one of {target.num_tokens} tokens of {target.dtype.value}.",
                source_tokens=source.num_tokens,
                target_tokens=target.num_tokens,
            )
        if source.handle != target.handle:
            self._make_plan(from_pool, to_pool).copy(from_ids, to_ids).wait()

    def migrate(self, block: KVBlock, device: str) -> KVBlock:
        """Move a block to ``device`` and free the old one; a block already there is returned."""
        self.find(block)
        if block.device == device:
            return block
        moved = self.alloc(block.num_tokens, block.dtype, device)
        try:
            self.copy(block, moved)
        except BaseException:
            self.free(moved)
            raise
        self.free(block)
        return moved

    def find(self, block: Any) -> tuple[KVPool, BlockIds]:
        """The pool and the ids behind a live block, which stay owned here."""
        check_type("block", block, KVBlock)
        with self._lock:
            held = self._find(block)
        return held.pool, held.ids

    def release_idle(self) -> None:
        """Close the pools that hold no live block."""
        with self._lock:
            for key, pool in list(self._pools.items()):
                if pool.num_free == pool.num_blocks:
                    del self._pools[key]
                    pool.close()
                    self._ledger_of(pool.device).unreserve(pool.nbytes)

    def _find(self, block: KVBlock) -> _Held:
        handle: object = block.handle  # whatever a caller put there
        held = self._held.get(handle) if isinstance(handle, int) else None
        if held is None:
            raise InvalidArgumentError(
                f"KV block {shown(handle)} is not held by this provider: it was freed "
                "before, or another provider gave it.",
                hint="Free each block once, with the provider that allocated it.",
            )
        if held.block is not block and not _same(held.block, block):
            raise InvalidArgumentError(
                f"KV block {held.block.handle} was given out as {held.block}, not as this.",
                hint="Use the blocks that kv_block_alloc() returned, unchanged.",
                handle=held.block.handle,
            )
        return held

    def _pool(self, dtype: DType, device: str) -> KVPool:
        pool = self._pools.get((dtype, device))
        if pool is None:
            layout = replace(self._layout, dtype=dtype)
            nbytes = layout.nbytes(self._num_blocks)
            ledger = self._ledger_of(device)
            ledger.reserve(nbytes)
            try:
                pool = self._make_pool(layout, self._num_blocks, device)
            except BaseException:
                ledger.unreserve(nbytes)
                raise
            self._pools[dtype, device] = pool
        return pool


def _same(own: KVBlock, given: KVBlock) -> bool:
    # Types first: what a caller put into a block of his making need not even be comparable.
    pairs = [(getattr(own, item.name), getattr(given, item.name)) for item in fields(own)]
    return all(type(one) is type(other) and one == other for one, other in pairs)
