"""KV copies as work of a torch device's streams."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sagellm_backend.errors import DeadlineExceededError, KVTransferError
from sagellm_backend.kv import CompletedTransfer, KVPool, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.streams import Stream
from sagellm_backend.torch_support.errors import remedy
from sagellm_backend.torch_support.kv import TorchKVCopyPlan, runs
from sagellm_backend.torch_support.streams import TorchStream, native_event, settle

_FIRST_NAP_S, _LONGEST_NAP_S = 20e-6, 2e-3


class DeviceKVCopyPlan(TorchKVCopyPlan):
    """Copies that are queued on a stream; without one, on the device's current one, and waited for.

    A transfer ends with an event behind it. Device memory of both pools is kept from reuse until
    then, even if they are closed.
    """

    def __init__(self, source: KVPool, target: KVPool, module: Any) -> None:
        super().__init__(source, target)
        self._module = module
        ends = (self.source, self.target)
        on_device = [end for end in ends if end.location == "device"]
        self._device = torch.device((on_device or ends)[0].device)
        self._strided = len(on_device) == len(ends) and source.device == target.device
        self._word = _word(self.source.pages, self.target.pages)
        # Through pageable memory a copy waits, whatever it is called: then it is called what it is.
        self._asynchronous = all(end in on_device or end.pages.is_pinned() for end in ends)

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        nbytes = sources.size * self.source.layout.page_bytes
        if not isinstance(stream, TorchStream):
            with self._failures(sources.size):
                self._settle_ends()
                self._queue(sources, targets)
                self._settle_ends()
            return CompletedTransfer(sources.size, nbytes)
        if "device" not in {self.source.location, self.target.location}:
            stream.synchronize()  # the host copies at once, and earlier work may fill its memory
            return super()._copy(sources, targets, None)
        with self._failures(sources.size), self._ordered(stream) as queue:
            self._queue(sources, targets)
            self._keep(queue)
        done = native_event(self._module, timing=False)
        done.record(stream.native)
        return EventTransfer(done, sources.size, nbytes)

    def _queue(self, sources: Ids, targets: Ids) -> None:
        """One strided copy for each run on one device; else flat ones, which may run by DMA."""
        writes: list[torch.Tensor] = []
        reads: list[torch.Tensor] = []
        source, target = self.source.pages.view(self._word), self.target.pages.view(self._word)
        for first, last in runs(sources, targets):
            length = last - first
            read = source.narrow(1, int(sources[first]), length)
            write = target.narrow(1, int(targets[first]), length)
            reads += [read] if self._strided else read.unbind()
            writes += [write] if self._strided else write.unbind()
        torch._foreach_copy_(writes, reads, non_blocking=self._asynchronous)

    @contextmanager
    def _ordered(self, stream: TorchStream) -> Iterator[Any]:
        """Make the queue that the copy runs on current, behind and before work of ``stream``."""
        if stream.device == self._device:
            with self._module.stream(stream.native):
                yield stream.native
            return
        queue = self._module.current_stream(self._device)
        before, after = (native_event(self._module, timing=False) for _ in range(2))
        before.record(stream.native)
        queue.wait_event(before)
        with self._module.stream(queue):
            yield queue
            after.record(queue)
        stream.native.wait_event(after)

    def _keep(self, queue: Any) -> None:
        for pool in (self.source, self.target):
            pages = pool.pages
            if pages.device == queue.device:
                pages.record_stream(queue)

    def _settle_ends(self) -> None:
        for device in {torch.device(pool.device) for pool in (self.source, self.target)}:
            settle(self._module, device)

    @contextmanager
    def _failures(self, blocks: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise KVTransferError(
                f"Copying {blocks} KV blocks {self.direction} failed: {error}",
                hint=remedy(error, str(self._device)),
                blocks=blocks,
            ) from error


def _word(*pages: torch.Tensor) -> torch.dtype:
    """The widest integers that pages divide into: a copy kernel moves one of them at a time."""
    for word in (torch.int64, torch.int32, torch.int16):
        if all(_divides(word.itemsize, one) for one in pages):
            return word
    return torch.uint8


def _divides(size: int, pages: torch.Tensor) -> bool:
    starts = pages.storage_offset() * pages.itemsize
    return not (pages.shape[2] * pages.itemsize % size or starts % size)


class EventTransfer(Transfer):
    """A copy that is done when an event of its stream is."""

    def __init__(self, event: Any, num_blocks: int, nbytes: int) -> None:
        super().__init__(num_blocks, nbytes)
        self._event = event

    def done(self) -> bool:
        try:
            return bool(self._event.query())
        except RuntimeError:
            return True  # it ended badly, as wait() will say

    def _wait(self, timeout_s: float) -> None:
        deadline, nap = time.monotonic() + timeout_s, _FIRST_NAP_S
        try:
            while not self._event.query():
                if time.monotonic() >= deadline:
                    raise DeadlineExceededError(
                        f"Copying {self.num_blocks} KV blocks is still under way after "
                        f"{timeout_s} s.",
                        blocks=self.num_blocks,
                        timeout_s=timeout_s,
                    )
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP_S)
            self._event.synchronize()
        except RuntimeError as error:
            raise KVTransferError(
                f"Copying {self.num_blocks} KV blocks failed: {error}",
                hint=remedy(error),
                blocks=self.num_blocks,
            ) from error
