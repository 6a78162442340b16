"""Streams and events, over those of ``paddle.device``.

Of an XPU no stream can be asked whether it is done and no event keeps time; nor of other places here,
so that what is tested is what is offered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paddle

from sagellm_backend.capability import Feature
from sagellm_backend.kunlun.errors import check
from sagellm_backend.streams import Event, Stream

if TYPE_CHECKING:
    from sagellm_backend.kunlun.provider import KunlunProvider


class KunlunStream(Stream):
    """A stream of device ``index``; ``native`` is Paddle's. Priorities are hints that it ignores."""

    def __init__(self, owner: KunlunProvider, index: int, priority: int = 0) -> None:
        super().__init__(owner, priority)
        self.index = index
        self._provider = owner
        with check("create_stream", owner.device), owner.launcher.on(index):
            self.native = paddle.device.Stream(owner.runtime.place(index))

    def synchronize(self) -> None:
        with check("synchronize a stream", self._provider.device):
            self.native.synchronize()

    def query(self) -> bool:
        self._provider.require(Feature.STREAM_QUERY)
        raise NotImplementedError

    def _record(self, event: KunlunEvent) -> None:
        with check("record_event", self._provider.device):
            event.native.record(self.native)

    def _wait(self, event: KunlunEvent) -> None:
        with check("wait_event", self._provider.device):
            self.native.wait_event(event.native)


class KunlunEvent(Event):
    """An event; ``native`` is Paddle's."""

    def __init__(self, owner: KunlunProvider, index: int) -> None:
        super().__init__(owner)
        self._provider = owner
        with check("create_event", owner.device), owner.launcher.on(index):
            self.native = paddle.device.Event()

    def query(self) -> bool:
        with check("query an event", self._provider.device):
            return not self.recorded or bool(self.native.query())

    def synchronize(self) -> None:
        if self.recorded:
            with check("synchronize an event", self._provider.device):
                self.native.synchronize()

    def _elapsed_ms(self, start: Any) -> float:
        self._provider.require(Feature.EVENT_TIMING)
        raise NotImplementedError
