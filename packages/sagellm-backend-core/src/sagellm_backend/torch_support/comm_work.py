"""Collectives under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import torch

from sagellm_backend.checks import check_seconds
from sagellm_backend.collectives import Work
from sagellm_backend.errors import CommTimeoutError

_POLL_S = 0.0005


class _Group(Protocol):
    rank: int
    world_size: int
    timeout_s: float

    def errors(self, operation: str) -> AbstractContextManager[None]: ...


class DoneWork(Work):
    """Work that had nothing to wait for."""

    def done(self) -> bool:
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        del timeout_s


class TorchWork(Work):
    """A collective under way; it holds its tensors until it has ended.

    ``wait()`` returns when the result is there or the group's timeout has failed it; on a device
    with streams it orders the current stream behind the collective, as torch does. With
    ``timeout_s`` the host waits too, and a :class:`CommTimeoutError` from that leaves the collective
    under way: it can be waited for again.
    """

    def __init__(
        self,
        group: _Group,
        operation: str,
        handle: Any,
        tensors: tuple[torch.Tensor, ...],
        finish: Callable[[], object] | None,
    ) -> None:
        self._group, self._operation, self._handle = group, operation, handle
        self._tensors, self._finish = tensors, finish

    def done(self) -> bool:
        return self._handle is None or bool(self._handle.is_completed())

    def wait(self, timeout_s: float | None = None) -> None:
        if timeout_s is not None:
            self._poll(check_seconds("timeout_s", timeout_s))
        if self._handle is None:
            return
        with self._group.errors(self._operation):
            self._handle.wait()
        if self._finish is not None:
            self._finish()
        self._handle, self._finish, self._tensors = None, None, ()

    def abandon(self) -> None:
        """Wait as the library does, whose timeout has come, so that it ends what is under way."""
        if self._handle is not None:
            with suppress(RuntimeError):  # which says no more than is known
                self._handle.wait()

    def _poll(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.done():
            if time.monotonic() > deadline:
                raise CommTimeoutError(
                    f"{self._operation} has not ended on rank {self._group.rank} of "
                    f"{self._group.world_size} within {timeout_s:g} s.",
                    hint=f"It is still under way; the group gives up after "
                    f"{self._group.timeout_s:g} s.",
                    timeout_s=timeout_s,
                )
            time.sleep(_POLL_S)


__all__ = ["DoneWork", "TorchWork"]
