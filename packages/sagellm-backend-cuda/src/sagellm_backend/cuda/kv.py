"""KV copies on a card: batches of the driver between host and device, torch's copies otherwise."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sagellm_backend.cuda.batches import DriverBatches, Numbers
from sagellm_backend.kv import KVPool
from sagellm_backend.kv.copy import Ids
from sagellm_backend.torch_support.device_kv import DeviceKVCopyPlan
from sagellm_backend.torch_support.kv import runs
from sagellm_backend.torch_support.streams import native_event, side_stream


class CUDAKVCopyPlan(DeviceKVCopyPlan):
    """Copies that cross between pinned host memory and a device go to the driver as one batch.

    That is so where there is more than one piece to copy and the driver has batches; everything
    else is :class:`DeviceKVCopyPlan`'s. The rule is to be measured on hardware, which it never was.
    """

    def __init__(
        self, source: KVPool, target: KVPool, module: Any, batches: DriverBatches | None
    ) -> None:
        super().__init__(source, target, module)
        host = [end for end in (self.source, self.target) if end.location == "host"]
        crosses = len(host) == 1 and host[0].pages.is_pinned()
        self._batches = batches if crosses else None

    def _queue(self, sources: Ids, targets: Ids) -> None:
        spans = np.array(list(runs(sources, targets)))
        firsts, lengths = spans[:, 0], spans[:, 1] - spans[:, 0]
        rows = self.source.pages.shape[0]
        if self._batches is None or rows * len(spans) == 1:
            super()._queue(sources, targets)
            return
        self._batch(
            self._batches,
            _addresses(self.target.pages, targets[firsts]),
            _addresses(self.source.pages, sources[firsts]),
            np.tile(lengths * _block_bytes(self.source.pages), rows),
        )

    def _batch(
        self, batches: DriverBatches, targets: Numbers, sources: Numbers, sizes: Numbers
    ) -> None:
        current = self._module.current_stream(self._device)
        queue = current if self._handle_of(current) else self._own
        if queue is not current:
            self._follow(queue, current)
        # A call of the runtime makes its context this thread's, as those of the driver need it.
        queue.query()
        try:
            batches.copy(targets, sources, sizes, self._handle_of(queue))
        except RuntimeError:
            # What was queued of it must not write into blocks that the caller takes for its own.
            with contextlib.suppress(RuntimeError):
                queue.synchronize()
            raise
        if queue is not current:
            self._follow(current, queue)

    @cached_property
    def _own(self) -> Any:
        """Where the current stream is the legacy default one, which the driver refuses."""
        return side_stream(self._module, self._device)

    @staticmethod
    def _handle_of(queue: Any) -> int:
        """The driver's handle of a stream of torch; 0 for the legacy default stream."""
        return int(queue.cuda_stream)

    def _follow(self, queue: Any, other: Any) -> None:
        event = native_event(self._module, timing=False)
        event.record(other)
        queue.wait_event(event)


def _addresses(pages: torch.Tensor, blocks: Ids) -> Numbers:
    """Where each block lies, row by row."""
    steps = np.arange(pages.shape[0], dtype=np.int64) * (pages.stride(0) * pages.itemsize)
    found: Numbers = pages.data_ptr() + steps[:, None] + blocks * _block_bytes(pages)
    return found.ravel()


def _block_bytes(pages: torch.Tensor) -> int:
    return pages.shape[2] * pages.itemsize
