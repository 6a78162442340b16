"""Correct providers that merely differ: the suite must pass them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sagellm_backend.checks import check_int
from sagellm_backend.conformance.zoo.member import honest
from sagellm_backend.conformance.zoo.parts import OwnKV
from sagellm_backend.conformance.zoo.stream import OwnStreams
from sagellm_backend.hooks import HOST
from sagellm_backend.kv import BlockAllocator, BlockIds
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.kv import ReferenceKVPool
from sagellm_backend.reference.memory import Storage
from sagellm_backend.reference.provider import ReferenceProvider
from sagellm_backend.reference.streams import ReferenceStream, Task


class _Shuffling(BlockAllocator):
    """The free list is stirred before every allocation."""

    def alloc(self, count: int) -> BlockIds:
        check_int("count", count, low=0)
        with self._lock:
            free = self._free[: self._num_free]
            free[:] = np.random.default_rng(len(free)).permutation(free)
        return super().alloc(count)


@honest("Blocks are handed out in random order", profiles=("kv",))
class ShufflesBlocks(OwnKV):
    allocator = _Shuffling


class _Queueing(BlockAllocator):
    """What was freed first is handed out first."""

    def alloc(self, count: int) -> BlockIds:
        check_int("count", count, low=0)
        with self._lock:
            free = self._free[: self._num_free]
            free[:] = np.roll(free, count % (len(free) or 1))
        return super().alloc(count)


@honest("Blocks that were freed first are handed out first", profiles=("kv",))
class QueuesBlocks(OwnKV):
    allocator = _Queueing


class _ValuesFirst(ReferenceKVPool):
    def _key_cache(self, layer: int) -> DeviceArray:
        return super()._value_cache(layer)

    def _value_cache(self, layer: int) -> DeviceArray:
        return super()._key_cache(layer)


@honest("Values lie before keys", profiles=("kv", "attention"))
class PutsValuesFirst(OwnKV):
    pool = _ValuesFirst


class _Waiting(ReferenceStream):
    def submit(self, work: Callable[[], object], writes: Iterable[Storage] = ()) -> Task:
        task = super().submit(work, writes)
        task.join()
        return task


@honest("Every call returns when its work is done", profiles=("core", "stream", "kv"))
class WaitsForEveryCall(OwnStreams):
    stream = _Waiting


class _Delayed(ReferenceStream):
    def submit(self, work: Callable[[], object], writes: Iterable[Storage] = ()) -> Task:
        def late() -> None:
            time.sleep(0.002)
            work()

        return super().submit(late, writes)


@honest("Work begins late", profiles=("core", "stream", "kv"))
class BeginsLate(OwnStreams):
    stream = _Delayed


@honest("It has 256 MiB of memory", profiles=("core", "kv"))
class HasLittleMemory(ReferenceProvider):
    def _memory_limit(self, account: str) -> int:
        return min(super()._memory_limit(account), 1 << 28)


@honest("Memory that was not written holds zeros", profiles=("core", "kv", "attention"))
class ClearsMemory(ReferenceProvider):
    def _empty(self, *request: Any) -> DeviceArray:
        made = super()._empty(*request)
        made.storage.memory[...] = 0
        return made


@honest("Host memory counts with its device", profiles=("core", "kv"))
class SharesItsMemory(ReferenceProvider):
    def _account(self, place: Any) -> str:
        return str(place.device) if place.location == HOST else super()._account(place)
