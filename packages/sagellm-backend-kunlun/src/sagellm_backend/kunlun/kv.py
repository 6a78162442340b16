"""KV pools and copies in tensors: keys and values apart, heads before tokens where that is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from sagellm_backend.errors import KVTransferError
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.kunlun.memory import ALIGNMENT
from sagellm_backend.kv import CompletedTransfer, KVCopyPlan, KVLayout, KVPool, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.streams import Stream

if TYPE_CHECKING:
    from sagellm_backend.kunlun.provider import KunlunProvider


class KunlunKVPool(KVPool):
    """A pool in two tensors for each layer, keys and values apart, as the kernels of XPUs have them.

    ``pages`` are these tensors as (blocks, elements): one block id of each of them makes up a page.
    Copies move pages and need not know what is in them.
    """

    owner: KunlunProvider

    def __init__(
        self, owner: KunlunProvider, layout: KVLayout, num_blocks: int, place: Place
    ) -> None:
        super().__init__(owner, layout, num_blocks, place.location, place.device)
        memory = [_aligned(owner, layout, num_blocks, place) for _ in range(2 * layout.num_layers)]
        self.pages = [part.view([num_blocks, -1]) for part in memory]
        caches = [self._logical(part.view([num_blocks, *layout.block_shape])) for part in memory]
        self._keys, self._values = caches[::2], caches[1::2]

    def _logical(self, cache: Any) -> Any:
        return paddle.transpose(cache, [0, 2, 1, 3]) if self.layout.order == "HND" else cache

    def _key_cache(self, layer: int) -> Any:
        return self._keys[layer]

    def _value_cache(self, layer: int) -> Any:
        return self._values[layer]

    def _close(self) -> None:
        del self.pages, self._keys, self._values


def _aligned(owner: KunlunProvider, layout: KVLayout, num_blocks: int, place: Place) -> Any:
    dtype, alignment = layout.dtype, max(layout.alignment, ALIGNMENT)
    size = num_blocks * layout.block_bytes * 8 // dtype.bits
    memory = owner.allocate((size,), dtype, place)
    if memory.data_ptr() % alignment == 0:
        return memory
    memory = owner.allocate((size + alignment * 8 // dtype.bits,), dtype, place)
    start = -memory.data_ptr() % alignment * 8 // dtype.bits
    return memory[start : start + size]


class KunlunKVCopyPlan(KVCopyPlan):
    """Copies that are done on return, behind the work of the stream that they are given.

    Runs of neighbouring blocks are copied at once, in the direction that the pools declare.
    """

    source: KunlunKVPool
    target: KunlunKVPool

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        owner, ends = self.source.owner, (self.source, self.target)
        try:
            if stream is not None:
                stream.synchronize()
            for end in ends:
                owner.runtime.synchronize(_index(owner, end))
            on_device = next((end for end in ends if end.location != HOST), self.source)
            with owner.launcher.on(_index(owner, on_device)):
                self._move(sources, targets)
            for end in ends:
                owner.runtime.synchronize(_index(owner, end))
        except (RuntimeError, ValueError, MemoryError) as error:
            raise KVTransferError(
                f"Copying {sources.size} KV blocks {self.direction} failed: {error}",
                blocks=sources.size,
            ) from error
        return CompletedTransfer(sources.size, sources.size * self.source.layout.page_bytes)

    def _move(self, sources: Ids, targets: Ids) -> None:
        for first, last in runs(sources, targets):
            length = last - first
            read, write = int(sources[first]), int(targets[first])
            for source, target in zip(self.source.pages, self.target.pages, strict=True):
                target[write : write + length].copy_(source[read : read + length], False)


def _index(owner: KunlunProvider, pool: KVPool) -> int:
    return owner.runtime_index(pool.device)


def runs(sources: Ids, targets: Ids) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of every stretch in which both ids rise by one."""
    breaks = np.flatnonzero((np.diff(sources) != 1) | (np.diff(targets) != 1)) + 1
    edges = [0, *breaks.tolist(), sources.size]
    return itertools.pairwise(edges)
