"""Parts of providers that the zoo changes one thing in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.hooks import Place
from sagellm_backend.kv import BlockAllocator, KVCopyPlan, KVLayout, KVPool, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.kv import (
    ReferenceKVCopyPlan,
    ReferenceKVPool,
    ReferenceTransfer,
)
from sagellm_backend.reference.provider import ReferenceProvider
from sagellm_backend.reference.streams import ReferenceStream
from sagellm_backend.streams import Stream

Move = Callable[[Array, Array, Ids, Ids], None]


class OwnKV(ReferenceProvider):
    """The reference with pools, plans and allocators of the zoo's own classes."""

    pool: type[ReferenceKVPool] = ReferenceKVPool
    plan: type[ReferenceKVCopyPlan] = ReferenceKVCopyPlan
    allocator: type[BlockAllocator] = BlockAllocator

    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        made = self.pool(self, layout, num_blocks, place)
        made._blocks = self.allocator(num_blocks)
        return made

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return self.plan(source, target)


def plain_move(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    """The right way to move pages."""
    write[:, :, targets] = read[:, :, sources]


class NoisyPool(ReferenceKVPool):
    """A pool whose fresh blocks hold noise, no two the same."""

    def __init__(self, owner: Any, layout: KVLayout, num_blocks: int, place: Place) -> None:
        super().__init__(owner, layout, num_blocks, place)
        memory = self.storage.memory
        memory[...] = np.random.default_rng(memory.ctypes.data).integers(0, 127, memory.shape)


class OwnMove(ReferenceKVCopyPlan):
    """A plan that moves pages by :attr:`move`.

    Pages are bytes of shape (layers, 2, blocks, block_bytes).
    """

    move: Move = staticmethod(plain_move)

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        read, write = self.source.pages, self.target.pages
        from_ids, to_ids, move = sources.copy(), targets.copy(), self.move

        def work() -> None:
            move(read, write, from_ids, to_ids)

        queue = stream if isinstance(stream, ReferenceStream) else self._ordered_stream()
        task = queue.submit(work, [self.target.storage])
        nbytes = sources.size * self.source.layout.page_bytes
        transfer = ReferenceTransfer(task, sources.size, nbytes)
        if stream is None:
            task.join()
        return transfer


def with_move(move: Move) -> type[OwnKV]:
    """The reference with plans that move pages by this function."""
    plan = type("Plan", (OwnMove,), {"move": staticmethod(move)})
    return type("WithMove", (OwnKV,), {"plan": plan})
