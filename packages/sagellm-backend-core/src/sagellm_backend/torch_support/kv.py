"""KV pools and copies in tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from sagellm_backend.errors import KVTransferError
from sagellm_backend.kv import CompletedTransfer, KVCopyPlan, KVLayout, KVPool, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.streams import Stream
from sagellm_backend.torch_support.arrays import TORCH_DTYPES


class TorchKVPool(KVPool):
    """A pool in one tensor, made by the provider as plain bytes.

    ``pages`` is the storage as rows by block: (rows, blocks, elements), where one id of every row
    makes up a page. Copies move pages and need not know what is in them.
    """

    def __init__(
        self,
        owner: object,
        layout: KVLayout,
        num_blocks: int,
        location: str,
        device: str,
        memory: torch.Tensor,
    ) -> None:
        super().__init__(owner, layout, num_blocks, location, device)
        typed = memory.view(TORCH_DTYPES[layout.dtype])
        layers, shape = layout.num_layers, layout.block_shape
        if layout.packing == "separate":
            caches = typed.view(layers, 2, num_blocks, *shape)
            self._keys, self._values = caches[:, 0].unbind(), caches[:, 1].unbind()
            self.pages = typed.view(2 * layers, num_blocks, -1)
        else:
            caches = typed.view(layers, num_blocks, 2, *shape)
            self._keys, self._values = caches[:, :, 0].unbind(), caches[:, :, 1].unbind()
            self.pages = typed.view(layers, num_blocks, -1)
        if layout.order == "HND":
            self._keys = tuple(cache.transpose(1, 2) for cache in self._keys)
            self._values = tuple(cache.transpose(1, 2) for cache in self._values)

    def _key_cache(self, layer: int) -> torch.Tensor:
        return self._keys[layer]

    def _value_cache(self, layer: int) -> torch.Tensor:
        return self._values[layer]

    def _close(self) -> None:
        del self.pages, self._keys, self._values


class TorchKVCopyPlan(KVCopyPlan):
    """Copies runs of neighbouring blocks by one strided copy each, all runs in one call."""

    source: TorchKVPool
    target: TorchKVPool

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        del stream  # the caller's torch stream is current; on the CPU calls are done on return
        source, target = self.source.pages, self.target.pages
        reads, writes = [], []
        for first, last in runs(sources, targets):
            length = last - first
            reads.append(source.narrow(1, int(sources[first]), length))
            writes.append(target.narrow(1, int(targets[first]), length))
        try:
            torch._foreach_copy_(writes, reads)
        except RuntimeError as error:
            raise KVTransferError(
                f"Copying {sources.size} KV blocks {self.direction} failed: {error}",
                blocks=sources.size,
            ) from error
        return CompletedTransfer(sources.size, sources.size * self.source.layout.page_bytes)


def runs(sources: Ids, targets: Ids) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of every stretch in which both ids rise by one."""
    breaks = np.flatnonzero((np.diff(sources) != 1) | (np.diff(targets) != 1)) + 1
    edges = [0, *breaks.tolist(), sources.size]
    return itertools.pairwise(edges)
