"""Faults of events."""

from __future__ import annotations

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.conformance.zoo.stream import OwnStreams, SlowStream
from sagellm_backend.reference.streams import (
    ReferenceEvent,
    ReferenceStream,
)
from sagellm_backend.streams import Event


class _NoWait(SlowStream):
    def _wait(self, event: ReferenceEvent) -> None:
        del event


@member("stream", "wait_event does nothing", kills=("stream.events_order_streams",))
class WaitEventIsIgnored(OwnStreams):
    stream = _NoWait


class _HostWaits(SlowStream):
    def _wait(self, event: ReferenceEvent) -> None:
        assert event.marker is not None
        event.marker.join()


@member("stream", "wait_event makes the host wait", kills=("stream.nobody_waits_too_long",))
class WaitEventBlocksTheHost(OwnStreams):
    stream = _HostWaits


class _Strict(SlowStream):
    def wait_event(self, event: Event) -> None:
        if not event.recorded:
            raise RuntimeError("driver error 400: invalid resource handle")
        super().wait_event(event)


@member(
    "stream",
    "Waiting for an event that was never recorded fails",
    kills=("stream.unrecorded_events_are_done",),
)
class WaitForUnrecordedFails(OwnStreams):
    stream = _Strict


class _DoneEvent(ReferenceEvent):
    def query(self) -> bool:
        return True


@member("stream", "An event is always done", kills=("stream.waiting_waits",))
class EventIsAlwaysDone(OwnStreams):
    event = _DoneEvent


class _PendingEvent(ReferenceEvent):
    def query(self) -> bool:
        return self.marker is not None and self.marker.done()


@member(
    "stream",
    "An event that was never recorded is not done",
    kills=("stream.unrecorded_events_are_done",),
)
class UnrecordedEventIsPending(OwnStreams):
    event = _PendingEvent


class _EarlyEvent(ReferenceEvent):
    def synchronize(self) -> None:
        return


@member("stream", "Synchronising an event returns at once", kills=("stream.waiting_waits",))
class EventDoesNotWait(OwnStreams):
    event = _EarlyEvent


class _FirstRecording(SlowStream):
    def _record(self, event: ReferenceEvent) -> None:
        if event.marker is None:
            super()._record(event)


@member(
    "stream",
    "A second recording of an event is ignored",
    kills=("stream.the_second_recording_counts",),
)
class EventKeepsFirstRecording(OwnStreams):
    stream = _FirstRecording


class _EarlyMark(SlowStream):
    def _record(self, event: ReferenceEvent) -> None:
        event.marker = ReferenceStream(self.owner, self.device, self._worker._group).mark()


@member(
    "stream",
    "An event is recorded before the work given so far",
    kills=("stream.events_order_streams",),
)
class EventIsRecordedEarly(OwnStreams):
    stream = _EarlyMark


class _Seconds(ReferenceEvent):
    def _elapsed_ms(self, start: ReferenceEvent) -> float:
        return super()._elapsed_ms(start) / 1e3


@member("stream", "Elapsed time is in seconds", kills=("stream.elapsed_is_in_milliseconds",))
class ElapsedIsInSeconds(OwnStreams):
    event = _Seconds


class _Unsigned(ReferenceEvent):
    def _elapsed_ms(self, start: ReferenceEvent) -> float:
        return abs(super()._elapsed_ms(start))


@member(
    "stream",
    "Events in the wrong order have a positive time between",
    kills=("stream.times_are_ordered_and_add_up",),
)
class ElapsedHasNoSign(OwnStreams):
    event = _Unsigned


class _Untimed(ReferenceEvent):
    def elapsed_ms(self, start: Event) -> float:
        if not (start.recorded and self.recorded):
            return 0.0
        return super().elapsed_ms(start)


@member(
    "stream",
    "Events that were not recorded are 0 ms apart",
    kills=("stream.times_of_bad_pairs_are_refused",),
)
class ElapsedOfNothingIsZero(OwnStreams):
    event = _Untimed


class _Hospitable(SlowStream):
    def _own(self, event: Event) -> Event:
        return event


@member(
    "stream",
    "A stream takes events of other providers",
    kills=("stream.foreign_events_are_refused",),
)
class StreamTakesForeignEvents(OwnStreams):
    stream = _Hospitable
