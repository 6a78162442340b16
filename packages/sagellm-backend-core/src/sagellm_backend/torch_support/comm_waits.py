"""Groups over a library of a device, whose collectives wait on the host.

torch orders a stream behind a collective and goes on; where a peer never comes, a watchdog ends the
process. Groups of here are made to wait instead, so that the caller gets an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from sagellm_backend.collectives import Work
from sagellm_backend.torch_support.communicator import TorchCommunicator

_SPIN_S, _NAP_S = 2e-3, 5e-5


class WaitingCommunicator(TorchCommunicator):
    """A group whose collectives return when they have ended, or have failed by the group's timeout.

    They cannot be captured in graphs: they wait on the host.
    """

    waits: ClassVar[tuple[str, ...]] = ()
    """Variables of which any makes process groups wait on the host, and their watchdog end nothing."""

    @classmethod
    @contextmanager
    def creating(cls) -> Iterator[None]:
        """Groups made here wait on the host, unless the environment says how they wait."""
        if any(name in os.environ for name in cls.waits):
            yield
            return
        os.environ[cls.waits[0]] = "1"
        try:
            yield
        finally:
            os.environ.pop(cls.waits[0], None)

    def _start(
        self,
        operation: str,
        detail: str,
        array: torch.Tensor,
        call: Callable[..., Any],
        tensors: tuple[torch.Tensor, ...],
        async_op: bool,
        finish: Callable[[], object] | None = None,
    ) -> Work:
        work = super()._start(operation, detail, array, call, tensors, True, finish)
        if not async_op:
            self._await(operation, work)
        return work

    def _await(self, operation: str, work: Work) -> None:
        """Wait by our own watch: those of torch's libraries look every few milliseconds."""
        start = time.monotonic()
        with self.errors(operation):
            while not work.done():
                taken = time.monotonic() - start
                if taken >= self.timeout_s:
                    self._give_up(work)
                    raise RuntimeError(f"timed out on {self.device}")
                time.sleep(_NAP_S if taken > _SPIN_S else 0)
        work.wait()

    def _give_up(self, work: Work) -> None:
        """End what is under way on the device, where the library can."""
        del work


__all__ = ["WaitingCommunicator"]
