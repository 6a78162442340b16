"""Streams and events of a torch device, over those of its device module."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from sagellm_backend.capability import Feature
from sagellm_backend.streams import Event, Stream
from sagellm_backend.torch_support.errors import check

if TYPE_CHECKING:
    from sagellm_backend.base import BackendProvider


class TorchStream(Stream):
    """A stream of ``device``; ``native`` is the module's own, to be used with torch directly."""

    def __init__(
        self, owner: BackendProvider, module: Any, device: torch.device, priority: int = 0
    ) -> None:
        super().__init__(owner, priority)
        self.device = device
        self._provider = owner
        self._module = module
        self._contexts = threading.local()
        with check("create_stream", str(device)):
            self.native = _native_stream(module, device, priority)

    def synchronize(self) -> None:
        with check("synchronize a stream", str(self.device)):
            self.native.synchronize()

    def query(self) -> bool:
        self._provider.require(Feature.STREAM_QUERY)
        with check("query a stream", str(self.device)):
            return bool(self.native.query())

    def _record(self, event: TorchEvent) -> None:
        with check("record_event", str(self.device)):
            event.native.record(self.native)

    def _wait(self, event: TorchEvent) -> None:
        with check("wait_event", str(self.device)):
            self.native.wait_event(event.native)

    def _enter(self) -> None:
        context = self._module.stream(self.native)
        context.__enter__()
        self._stack().append(context)

    def _exit(self) -> None:
        self._stack().pop().__exit__(None, None, None)

    def _stack(self) -> list[AbstractContextManager[Any]]:
        """What this thread has entered: a stream may be current in several at once."""
        held = self._contexts.__dict__
        stack: list[AbstractContextManager[Any]] = held.setdefault("entered", [])
        return stack


class TorchEvent(Event):
    """An event; ``native`` is the module's own."""

    def __init__(self, owner: BackendProvider, native: Any) -> None:
        super().__init__(owner)
        self.native = native
        self._provider = owner

    def query(self) -> bool:
        with check("query an event", self._provider.device):
            return not self.recorded or bool(self.native.query())

    def synchronize(self) -> None:
        if self.recorded:
            with check("synchronize an event", self._provider.device):
                self.native.synchronize()

    def _elapsed_ms(self, start: TorchEvent) -> float:
        self._provider.require(Feature.EVENT_TIMING)
        with check("elapsed_ms", self._provider.device):
            start.native.synchronize()
            self.native.synchronize()
            return float(start.native.elapsed_time(self.native))


def module_features(module: Any) -> frozenset[Feature]:
    """The features of streams and events that a device module has."""
    stream, event = (getattr(module, word, None) for word in ("Stream", "Event"))
    if stream is None or event is None or not hasattr(module, "stream"):
        return frozenset()
    found = {Feature.STREAM, Feature.EVENT, Feature.ASYNC_COPY}
    if hasattr(stream, "query"):
        found.add(Feature.STREAM_QUERY)
    if hasattr(stream, "priority_range"):
        found.add(Feature.STREAM_PRIORITY)
    if hasattr(event, "elapsed_time"):
        found.add(Feature.EVENT_TIMING)
    return frozenset(found)


def native_event(module: Any, *, timing: bool) -> Any:
    """A new event of the module."""
    return module.Event(enable_timing=True) if timing else module.Event()


def settle(module: Any, device: torch.device) -> None:
    """Wait for this thread's current stream of ``device``, or for all of it where it has none."""
    with check("synchronize", str(device)):
        if hasattr(module, "current_stream"):
            module.current_stream(device).synchronize()
        else:
            module.synchronize()


def side_stream(module: Any, device: torch.device) -> Any:
    """A new stream of the module's own, of no special priority."""
    return _native_stream(module, device, 0)


def _native_stream(module: Any, device: torch.device, priority: int) -> Any:
    if not hasattr(module.Stream, "priority_range"):
        return module.Stream(device=device)
    # The modules count downwards: the most urgent has the least number.
    least, greatest = module.Stream.priority_range()
    low, high = sorted((least, greatest))
    return module.Stream(device=device, priority=min(max(-priority, low), high))
