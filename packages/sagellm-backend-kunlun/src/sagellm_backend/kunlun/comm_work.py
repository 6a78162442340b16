"""Collectives under way: on a thread of their group, for a library that computes on the host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol

from sagellm_backend.checks import check_seconds
from sagellm_backend.collectives import Work
from sagellm_backend.errors import CommError, CommTimeoutError

_SLOW_HINT = (
    "A peer is slower than the timeout, has stopped, or makes other calls: compare the logs of the "
    "ranks, or raise timeout_s."
)
_DEAD_HINT = (
    "Most often a peer process has ended: read its log. Then close this communicator and join anew."
)


class Group(Protocol):
    """What work asks of its communicator."""

    rank: int
    world_size: int
    timeout_s: float

    def fail(self, error: CommError) -> None:
        """Note that the group cannot be used any more."""


class DoneWork(Work):
    """Work that had nothing to wait for."""

    def done(self) -> bool:
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        del timeout_s


class Calls:
    """A thread that makes the calls of one group, in their order; Paddle's gloo blocks in each."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="kunlun gloo", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call."""
        future: Future[Any] = Future()
        self._queue.put((future, call))
        return future

    def close(self, timeout_s: float) -> None:
        """End the thread after the calls given so far, or leave it to them after ``timeout_s``."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            future, call = item
            try:
                result, error = call(), None
            except BaseException as raised:  # noqa: BLE001 - who waits for the call is told
                result, error = None, raised
            with suppress(InvalidStateError):
                future.set_exception(error) if error else future.set_result(result)
            del item, future, call, result, error  # arrays must not wait for the next call


class HostWork(Work):
    """A call on a group's thread. What it gives is written to the arrays by :meth:`wait`."""

    def __init__(
        self, group: Group, operation: str, future: Future[Any], finish: Callable[[Any], None]
    ) -> None:
        self._group, self._operation = group, operation
        self._future: Future[Any] | None = future
        self._finish = finish
        self._began = time.monotonic()

    def done(self) -> bool:
        return self._future is None or self._future.done()

    def wait(self, timeout_s: float | None = None) -> None:
        if self._future is None:
            return
        limit = self._group.timeout_s
        if timeout_s is not None and check_seconds("timeout_s", timeout_s) < limit:
            try:
                self._future.exception(timeout_s)
            except FutureTimeoutError:
                raise self._late(timeout_s, "It is still under way.") from None
        left = max(limit - (time.monotonic() - self._began), 0.0)
        try:
            result = self._future.result(left)
        except FutureTimeoutError:
            raise self._failed(self._late(limit, _SLOW_HINT)) from None
        except Exception as error:
            raise self._failed(self._dead(error)) from error
        self._future = None
        self._finish(result)

    def _failed(self, error: CommError) -> CommError:
        self._future = None
        self._group.fail(error)
        return error

    def _late(self, limit: float, hint: str) -> CommTimeoutError:
        group = self._group
        return CommTimeoutError(
            f"{self._operation} has not ended on rank {group.rank} of {group.world_size} within "
            f"{limit:g} s.",
            hint=hint,
            rank=group.rank,
            world_size=group.world_size,
            timeout_s=limit,
        )

    def _dead(self, error: Exception) -> CommError:
        group, elapsed = self._group, time.monotonic() - self._began
        reason = str(error).strip().partition("\n")[0]
        kind = CommTimeoutError if "TIMEOUT" in reason else CommError
        return kind(
            f"{self._operation} failed on rank {group.rank} of {group.world_size} after "
            f"{elapsed:.1f} s (timeout {group.timeout_s:g} s): {reason}",
            hint=_SLOW_HINT if kind is CommTimeoutError else _DEAD_HINT,
            rank=group.rank,
            world_size=group.world_size,
            elapsed_s=elapsed,
            timeout_s=group.timeout_s,
        )
