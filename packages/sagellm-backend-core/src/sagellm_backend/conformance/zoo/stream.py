"""Faults of streams."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.errors import UnavailableError
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.memory import Storage
from sagellm_backend.reference.provider import ReferenceProvider
from sagellm_backend.reference.streams import (
    ReferenceEvent,
    ReferenceStream,
    Task,
    Worker,
    settle,
)
from sagellm_backend.streams import _entered

DELAY_S = 0.02
"""How much later every piece of work begins on a slow device."""


class SlowStream(ReferenceStream):
    """A stream whose work begins late, so that whoever does not wait finds it undone."""

    def submit(self, work: Callable[[], object], writes: Iterable[Storage] = ()) -> Task:
        def late() -> None:
            time.sleep(DELAY_S)
            work()

        return super().submit(late, writes)


class OwnStreams(ReferenceProvider):
    """The reference with streams and events of the zoo's own classes."""

    stream: type[ReferenceStream] = SlowStream
    event: type[ReferenceEvent] = ReferenceEvent

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        for device in self._devices():
            self._default_streams[device] = self.stream(self, device, self._workers)

    def _create_stream(self, priority: int) -> ReferenceStream:
        return self.stream(self, self.device, self._workers, priority)

    def _create_event(self) -> ReferenceEvent:
        return self.event(self)


class _DoneStream(SlowStream):
    def query(self) -> bool:
        return True


@member("stream", "A stream is always done", kills=("stream.stream_query_tells_the_truth",))
class StreamIsAlwaysDone(OwnStreams):
    stream = _DoneStream


class _WaitingQuery(SlowStream):
    def query(self) -> bool:
        self.synchronize()
        return True


@member(
    "stream",
    "Asking whether a stream is done waits for it",
    kills=("stream.stream_query_tells_the_truth",),
)
class StreamQueryWaits(OwnStreams):
    stream = _WaitingQuery


class _EarlyStream(SlowStream):
    def synchronize(self) -> None:
        return


@member(
    "stream",
    "Synchronising a stream returns at once",
    kills=(
        *("stream.waiting_waits", "stream.results_are_right_after_synchronize"),
        "stream.the_entered_stream_does_the_work",
    ),
)
class StreamDoesNotWait(OwnStreams):
    stream = _EarlyStream


@member(
    "stream",
    "Synchronising the provider waits for default streams only",
    kills=("stream.waiting_waits",),
)
class SynchronizeForgetsStreams(OwnStreams):
    def _synchronize(self) -> None:
        settle(stream._worker.last for stream in self._default_streams.values())


@member(
    "kernels",
    "Reading an array does not wait for the work that makes it",
    kills=("kernels.softmax",),
)
class ReadDoesNotWait(OwnStreams):
    def _to_numpy(self, array: DeviceArray) -> Any:
        return array.require_live().raw().copy(order="C")


@member(
    "stream",
    "Entering a stream has no effect on kernels",
    kills=(
        "stream.the_entered_stream_does_the_work",
        "kv.copies_follow_what_their_stream_was_given_before",
    ),
)
class StreamsAreNotEntered(OwnStreams):
    def current_stream(self, device: str) -> ReferenceStream:
        return self._default_streams[device]


@member(
    "stream",
    "A stream entered inside of another has no effect on kernels",
    kills=("stream.work_goes_to_the_stream_entered",),
)
class NestedStreamsAreNotEntered(OwnStreams):
    def current_stream(self, device: str) -> ReferenceStream:
        if len(_entered.get()) > 1:
            return self._default_streams[device]
        return super().current_stream(device)


class _StickyStream(SlowStream):
    def __exit__(self, *_: object) -> None:
        return


@member(
    "stream",
    "A stream stays entered when its context ends",
    kills=("stream.entering_nests_and_restores",),
)
class StreamStaysEntered(OwnStreams):
    stream = _StickyStream


class _Unordered(ReferenceStream):
    """Every piece of work has a thread of its own."""

    def submit(self, work: Callable[[], object], writes: Iterable[Storage] = ()) -> Task:
        self.others: list[Worker] = [*getattr(self, "others", ()), Worker("", self._worker._group)]
        delay = DELAY_S * (1 + len(self.others) % 2)

        def late() -> None:
            time.sleep(delay)
            work()

        task = self.others[-1].submit(late)
        for storage in writes:
            storage.writer = task
        return task

    def synchronize(self) -> None:
        settle([other.last for other in getattr(self, "others", ())])

    def query(self) -> bool:
        return all(other.last.done() for other in getattr(self, "others", ()) if other.last)


@member(
    "stream", "Work of one stream is done in any order", kills=("stream.order_within_a_stream",)
)
class StreamHasNoOrder(OwnStreams):
    stream = _Unordered


def _swallow(work: Callable[[], object]) -> Callable[[], None]:
    def quiet() -> None:
        with contextlib.suppress(Exception):
            work()

    return quiet


class _Quiet(ReferenceStream):
    def submit(self, work: Callable[[], object], writes: Iterable[Storage] = ()) -> Task:
        return super().submit(_swallow(work), writes)


@member("stream", "A failure of work is swallowed", kills=("stream.failures_surface_once",))
class FailuresAreSwallowed(OwnStreams):
    stream = _Quiet


class _Sticky(ReferenceStream):
    failure: BaseException | None = None

    def synchronize(self) -> None:
        if self.failure is not None:
            raise self.failure
        try:
            super().synchronize()
        except BaseException as error:
            self.failure = error
            raise


@member("stream", "A failure is raised again and again", kills=("stream.failures_surface_once",))
class FailuresStick(OwnStreams):
    stream = _Sticky


@member("stream", "create_stream takes any priority", kills=("stream.bad_priorities_are_refused",))
class StreamTakesAnyPriority(OwnStreams):
    def create_stream(self, priority: Any = 0) -> ReferenceStream:
        return self._create_stream(0 * (priority if isinstance(priority, int) else 0))


@member(
    "core",
    "A closed provider still makes streams and events",
    kills=("core.a_closed_provider_refuses",),
)
class StreamsOutliveTheProvider(OwnStreams):
    def create_stream(self, priority: int = 0) -> ReferenceStream:
        return self._create_stream(priority)

    def create_event(self) -> ReferenceEvent:
        return self._create_event()


class _NoHigher(SlowStream):
    def __init__(self, owner: Any, device: str, workers: Any, priority: int = 0) -> None:
        if priority:
            raise RuntimeError("driver error 1: invalid priority")
        super().__init__(owner, device, workers, priority)


@member(
    "stream",
    "Priorities reach the driver unchecked",
    kills=("stream.priorities_are_hints", "core.no_stream_priority"),
)
class PrioritiesReachTheDriver(OwnStreams):
    stream = _NoHigher


@member(
    "stream",
    "Streams are made in the thread that made the provider, and in no other",
    kills=("stream.threads_have_streams_of_their_own",),
)
class StreamsAreOfOneThread(OwnStreams):
    def _create_stream(self, priority: int) -> ReferenceStream:
        if threading.current_thread() is not threading.main_thread():
            raise UnavailableError("driver error 201: invalid device context")
        return super()._create_stream(priority)


@member(
    "stream",
    "A failure of a call comes again at the next wait",
    kills=("stream.a_failed_call_harms_nothing",),
)
class CallFailuresComeAgain(OwnStreams):
    failure: Exception | None = None

    def get_kernel(self, name: str, **static: Any) -> Callable[..., Any]:
        kernel = super().get_kernel(name, **static)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return kernel(*args, **kwargs)
            except Exception as error:
                self.failure = error
                raise

        return call

    def _synchronize(self) -> None:
        super()._synchronize()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
