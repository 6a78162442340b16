"""KV copies in host memory: one call of a compiled kernel for all blocks, on all threads."""

from __future__ import annotations

import ctypes

import numpy as np

from sagellm_backend.cpu import capturing
from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.kv import CompletedTransfer, KVPool, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.streams import Stream
from sagellm_backend.torch_support.kv import TorchKVCopyPlan

_KERNEL = Kernel("block_copy", "bytes")
_Words = ctypes.c_int64 * 12
_LINE = 64
_CHUNK = 1 << 17
_PAST_CACHES = 1 << 25
"""Bytes from which a copy within a pool is written past the caches (benchmarks/kv.py).

Between two pools half of them are enough: more memory takes turns in the caches.
"""


class CPUKVCopyPlan(TorchKVCopyPlan):
    """Copies at the speed of memory, without the GIL, on the threads that torch computes with.

    Where the kernel cannot be compiled, torch copies.
    """

    def __init__(self, source: KVPool, target: KVPool) -> None:
        super().__init__(source, target)
        self._kernel = _KERNEL.function()

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        if self._kernel is None:
            return super()._copy(sources, targets, stream)
        # Held here, the memory outlives a pool that another thread closes.
        read, write = self.source.pages, self.target.pages
        sources, targets = np.ascontiguousarray(sources), np.ascontiguousarray(targets)
        if capturing.mine() is not None:  # a replay reads them again, whatever the caller does
            sources, targets = sources.copy(), targets.copy()
            capturing.touch((read, write, sources, targets))
        rows, _, elements = read.shape
        count, nbytes = sources.size, elements * read.itemsize
        total = rows * count * nbytes
        size = max(1, _CHUNK // nbytes)
        enough = _PAST_CACHES if self.source is self.target else _PAST_CACHES // 2
        past_caches = total >= enough and not (nbytes | write.data_ptr()) % _LINE
        words = _Words(
            *(0, read.data_ptr(), write.data_ptr()),
            *(read.shape[1] * nbytes, write.shape[1] * nbytes),
            *(_address(sources), _address(targets), count),
            *(rows, nbytes, size, past_caches),
        )
        team.run(self._kernel, words, -(-rows * count // size))
        return CompletedTransfer(count, total)


def _address(ids: Ids) -> int:
    address: int = ids.__array_interface__["data"][0]
    return address
