"""Streams and events of the CPU, where a call returns when its work is done.

A stream therefore never has work left; it is offered so that an engine written for streams runs
unchanged. Events keep the time at which they were recorded.
"""

from __future__ import annotations

import time

from sagellm_backend.streams import Event, Stream


class CPUEvent(Event):
    """A moment in time."""

    def __init__(self, owner: object) -> None:
        super().__init__(owner)
        self.time_ns = 0

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None

    def _elapsed_ms(self, start: CPUEvent) -> float:
        return (self.time_ns - start.time_ns) / 1e6


class CPUStream(Stream):
    """The calling thread itself."""

    def synchronize(self) -> None:
        return None

    def query(self) -> bool:
        return True

    def _record(self, event: CPUEvent) -> None:
        event.time_ns = time.perf_counter_ns()

    def _wait(self, event: CPUEvent) -> None:
        return None
