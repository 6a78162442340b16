"""Memory accounting: what a provider holds, by category, and what its device has left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, TypedDict

from sagellm_backend.errors import OutOfMemoryError

Category = Literal["kv", "graph", "other"]


class MemoryStats(TypedDict):
    """A snapshot in bytes; taking one has no side effects and resets no peak.

    The first group is this provider's own, the second the whole device's, other processes included.
    """

    allocated_bytes: int
    """Live arrays and KV blocks that this provider handed out: kv + graph + other."""
    peak_allocated_bytes: int
    """The largest value that ``allocated_bytes`` has had."""
    kv_bytes: int
    """KV pools, and blocks of ``kv_block_alloc``."""
    graph_bytes: int
    """Memory held by captured graphs."""
    other_bytes: int
    """Arrays of ``empty`` and ``from_numpy``."""
    reserved_bytes: int
    """``allocated_bytes`` and what is kept for reuse; ``clear_cache`` gives the difference back."""
    limit_bytes: int
    """The most that this provider may reserve."""
    device_total_bytes: int
    """Memory of the device."""
    device_free_bytes: int
    """Memory of the device that no process holds."""


class MemoryLedger:
    """Counts bytes by category against a limit. Thread-safe.

    Providers whose framework keeps no statistics charge every allocation here before they make it
    and release it when it dies.
    """

    def __init__(self, limit_bytes: int, device: str) -> None:
        self.limit_bytes = limit_bytes
        self._device = device
        # Reentrant: garbage collection may release an array in the middle of another call here.
        self._lock = threading.RLock()
        self._held: dict[Category, int] = {"kv": 0, "graph": 0, "other": 0}
        self._idle = 0
        self._peak = 0

    def charge(self, nbytes: int, category: Category) -> None:
        """Count ``nbytes``; raises :class:`OutOfMemoryError`, counting nothing, if over the limit."""
        with self._lock:
            self._fit(nbytes)
            self._held[category] += nbytes
            self._peak = max(self._peak, self._allocated())

    def release(self, nbytes: int, category: Category) -> None:
        """Take back a charge of the same size and category."""
        with self._lock:
            self._held[category] -= nbytes

    def reserve(self, nbytes: int) -> None:
        """Count ``nbytes`` that are kept for reuse and serve no live object yet."""
        with self._lock:
            self._fit(nbytes)
            self._idle += nbytes

    def unreserve(self, nbytes: int) -> None:
        """Take back a reservation."""
        with self._lock:
            self._idle -= nbytes

    def use_reserved(self, nbytes: int) -> None:
        """Turn reserved bytes into a live KV charge."""
        with self._lock:
            self._idle -= nbytes
            self._held["kv"] += nbytes
            self._peak = max(self._peak, self._allocated())

    def return_reserved(self, nbytes: int) -> None:
        """Turn a live KV charge back into reserved bytes."""
        with self._lock:
            self._held["kv"] -= nbytes
            self._idle += nbytes

    def stats(self, *, device_total: int, device_free: int) -> MemoryStats:
        """The snapshot, with the device's own figures put beside ours."""
        with self._lock:
            return MemoryStats(
                allocated_bytes=self._allocated(),
                peak_allocated_bytes=self._peak,
                kv_bytes=self._held["kv"],
                graph_bytes=self._held["graph"],
                other_bytes=self._held["other"],
                reserved_bytes=self._allocated() + self._idle,
                limit_bytes=self.limit_bytes,
                device_total_bytes=device_total,
                device_free_bytes=device_free,
            )

    def _allocated(self) -> int:
        return sum(self._held.values())

    def _fit(self, nbytes: int) -> None:
        free = self.limit_bytes - self._allocated() - self._idle
        if nbytes > free:
            raise out_of_memory(nbytes, free, self.limit_bytes, self._device)


class MemoryLedgers:
    """The ledgers of a provider, one for each device, made when first asked for. Thread-safe."""

    def __init__(self, limit_of: Callable[[str], int]) -> None:
        self._limit_of = limit_of
        self._lock = threading.Lock()
        self._ledgers: dict[str, MemoryLedger] = {}

    def of(self, device: str) -> MemoryLedger:
        """The ledger of ``device``."""
        with self._lock:
            if device not in self._ledgers:
                self._ledgers[device] = MemoryLedger(self._limit_of(device), device)
            return self._ledgers[device]


def out_of_memory(
    requested: int, free: int, limit: int, device: str, **numbers: Any
) -> OutOfMemoryError:
    """The error for bytes that do not fit on ``device``."""
    return OutOfMemoryError(
        f"{requested:,} bytes were requested on {device}, {free:,} of {limit:,} are free.",
        hint="Free arrays or pools, call clear_cache(), or ask for fewer blocks.",
        requested=requested,
        free=free,
        limit=limit,
        **numbers,
    )
