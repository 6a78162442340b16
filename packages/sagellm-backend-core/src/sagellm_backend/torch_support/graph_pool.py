"""The memory that the graphs of one device share, where its module has pools for them."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sagellm_backend.torch_support.streams import native_event, side_stream

if TYPE_CHECKING:
    from sagellm_backend.memory import MemoryLedger

Pool = tuple[int, ...]


class GraphPool:
    """One pool for all graphs of a device; without ``graph_pool_handle``, each has its own.

    Graphs that share a pool overwrite one another's memory in it: their replays take turns,
    whatever streams they are on, and their outputs are copied out of it. The pool's bytes are
    charged to ``ledger`` as ``graph`` when a capture makes it grow, until its last graph is closed,
    as torch holds them. Thread-safe.
    """

    def __init__(self, module: Any, device: torch.device, ledger: MemoryLedger) -> None:
        self._module, self._device, self._ledger = module, device, ledger
        self._lock = threading.RLock()
        self._stream: Any = None
        self._handle: Any = None
        self._charged: dict[Pool, int] = {}
        self._graphs: dict[Pool, int] = {}
        self._left: deque[tuple[Pool, int]] = deque()
        self._turn: Any = None

    @property
    def stream(self) -> Any:
        """The stream of all captures: memory is shared among those of one stream."""
        if self._stream is None:
            self._stream = side_stream(self._module, self._device)
        return self._stream

    @property
    def shared(self) -> bool:
        """Whether graphs share it."""
        return hasattr(self._module, "graph_pool_handle")

    def options(self) -> dict[str, Any]:
        """What a capture tells its module about the pool."""
        if not self.shared:
            return {}
        if self._handle is None:
            self._handle = self._module.graph_pool_handle()
        return {"pool": self._handle}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep captures and replays of other threads out."""
        try:
            with self._lock:
                yield
        finally:
            self._count_out()

    def join(
        self, graph: object, native: Any, outside: int
    ) -> tuple[int, weakref.finalize[..., object]]:
        """Count a captured graph in: (its bytes, what counts it out again).

        Its bytes are those by which the pool grew, and those that it holds ``outside``. It is
        counted out when ``graph`` dies, at the latest. Raises :class:`OutOfMemoryError`, counting
        nothing, where the ledger has no room. The pool is held by the caller.
        """
        pool = tuple(native.pool())
        self._graphs[pool] = self._graphs.get(pool, 0) + 1  # now it stays, whatever dies meanwhile
        leave = weakref.finalize(graph, self._leave, pool, outside)
        leave.atexit = False
        had = self._charged.setdefault(pool, 0)
        grown = max(_bytes(self._module, pool) - had, 0)
        try:
            self._ledger.charge(grown + outside, "graph")
        except BaseException:
            leave.detach()
            self._leave(pool, 0)
            raise
        self._charged[pool] = had + grown
        return grown + outside, leave

    def replay(self, replay: Callable[[], None]) -> None:
        """Queue a replay on the current stream, behind the last one of any stream."""
        with self.held():
            stream = self._module.current_stream(self._device)
            if self._turn is not None and self._turn != stream:
                event = native_event(self._module, timing=False)
                event.record(self._turn)
                stream.wait_event(event)
            self._turn = stream
            replay()

    def _leave(self, pool: Pool, outside: int) -> None:
        # A graph may die in the middle of anything, and under any lock: nothing is waited for here.
        self._left.append((pool, outside))
        self._count_out()

    def _count_out(self) -> None:
        while self._left and self._lock.acquire(blocking=False):
            try:
                self._forget(*self._left.popleft())
            finally:
                self._lock.release()

    def _forget(self, pool: Pool, outside: int) -> None:
        self._ledger.release(outside, "graph")
        self._graphs[pool] -= 1
        if self._graphs[pool]:
            return
        del self._graphs[pool]
        self._ledger.release(self._charged.pop(pool), "graph")
        if pool == self._handle:
            self._handle = None  # torch gives it up with its last graph


def _bytes(module: Any, pool: Pool) -> int:
    """What a pool has reserved."""
    return sum(
        int(segment["total_size"])
        for segment in module.memory_snapshot()
        if tuple(segment.get("segment_pool_id", ())) == pool
    )
