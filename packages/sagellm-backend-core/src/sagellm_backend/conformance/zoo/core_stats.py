"""Faults of accounting."""

from __future__ import annotations

import time
from typing import Any

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.hooks import Place
from sagellm_backend.memory import MemoryLedger, MemoryStats
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.provider import ReferenceProvider


class OwnStats(ReferenceProvider):
    """The reference with statistics that :meth:`spoil` changes."""

    def memory_stats(self, location: str | None = None) -> MemoryStats:
        found = super().memory_stats(location)
        self.spoil(found, self._account(self._place(location or "device")))
        return found

    def spoil(self, stats: MemoryStats, account: str) -> None:
        """Make something wrong."""


@member("core", "Statistics are in KiB", kills=("core.arrays_are_counted_while_they_live",))
class StatsAreInKib(OwnStats):
    def spoil(self, stats: MemoryStats, account: str) -> None:
        del account
        for name in ("allocated_bytes", "other_bytes", "kv_bytes", "graph_bytes"):
            stats[name] //= 1024


@member(
    "core", "The reserved bytes leave out what is held", kills=("core.statistics_are_complete",)
)
class StatsDoNotAddUp(OwnStats):
    def spoil(self, stats: MemoryStats, account: str) -> None:
        del account
        stats["reserved_bytes"] -= stats["allocated_bytes"]


@member("core", "Asking for statistics resets the peak", kills=("core.the_peak_stays",))
class QueryResetsThePeak(OwnStats):
    def spoil(self, stats: MemoryStats, account: str) -> None:
        self._ledgers.of(account)._peak = stats["allocated_bytes"]


@member("core", "The peak is what is held now", kills=("core.the_peak_stays",))
class PeakIsNow(OwnStats):
    def spoil(self, stats: MemoryStats, account: str) -> None:
        del account
        stats["peak_allocated_bytes"] = stats["allocated_bytes"]


@member(
    "core",
    "What all providers of the process hold counts as this one's",
    kills=("core.another_providers_memory_is_not_ours",),
)
class StatsAreOfTheWholeDevice(OwnStats):
    _all: list[ReferenceProvider] = []

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._all.append(self)

    def spoil(self, stats: MemoryStats, account: str) -> None:
        for other in self._all:
            if other is not self and not other.closed:
                ledger = other._ledgers.of(account)
                stats["allocated_bytes"] += ledger._allocated()
                stats["other_bytes"] += ledger._held["other"]
                stats["reserved_bytes"] += ledger._allocated()


@member("core", "Asking for statistics allocates", kills=("core.queries_change_nothing",))
class QueriesAllocate(OwnStats):
    def spoil(self, stats: MemoryStats, account: str) -> None:
        del stats
        if account != "host":
            self._kept = [*getattr(self, "_kept", ()), self.empty((64,), DType.FP32)]


@member(
    "core",
    "Memory kept for reuse is never given back",
    kills=("core.clear_cache_keeps_what_lives",),
)
class CacheIsNeverCleared(ReferenceProvider):
    def clear_cache(self) -> None:
        return


@member(
    "core",
    "A refused allocation stays charged",
    kills=("core.too_large_a_request_is_refused",),
)
class RefusalsAreCharged(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        try:
            return super()._empty(shape, dtype, place)
        except OutOfMemoryError:
            ledger = self._ledgers.of(self._account(place))
            ledger._held["other"] += max(ledger.limit_bytes - ledger._allocated(), 0)
            raise


@member("core", "Out of memory says no numbers", kills=("core.too_large_a_request_is_refused",))
class OutOfMemorySaysNothing(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        try:
            return super()._empty(shape, dtype, place)
        except OutOfMemoryError as error:
            raise OutOfMemoryError("Out of memory.") from error


@member(
    "core",
    "Out of memory is a plain MemoryError",
    kills=("core.more_than_the_device_has_is_refused",),
)
class OutOfMemoryIsUntyped(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        try:
            return super()._empty(shape, dtype, place)
        except OutOfMemoryError as error:
            raise MemoryError(str(error)) from error


class _RacyLedger(MemoryLedger):
    def charge(self, nbytes: int, category: Any) -> None:
        held = self._held[category]
        super().charge(nbytes, category)
        time.sleep(1e-4)
        self._held[category] = held + nbytes


@member(
    "core", "Threads that allocate at once lose bytes", kills=("core.threads_allocate_together",)
)
class AccountingRaces(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        for device in self._devices():
            self._ledgers._ledgers[device] = _RacyLedger(self._memory_limit(device), device)
