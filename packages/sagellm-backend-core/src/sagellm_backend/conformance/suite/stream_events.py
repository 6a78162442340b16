"""Events: they order streams, they keep time, and they belong to one provider."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.load import Load, computes
from sagellm_backend.conformance.suite.stream import ATTEMPTS
from sagellm_backend.errors import BackendError, InvalidArgumentError
from sagellm_backend.streams import Event

_EVENTS = (Feature.STREAM, Feature.EVENT)
_TIMED = (Feature.STREAM, Feature.EVENT, Feature.EVENT_TIMING)


@case("stream", requires=_EVENTS, needs=computes)
def events_order_streams(exam: Exam) -> None:
    """A stream that waits for an event reads what another stream wrote before it.

    Along a chain of four streams. Kills a wait_event that does nothing.
    """
    load, provider = Load(exam), exam.provider
    streams = [provider.create_stream() for _ in range(4)]
    results = [load.on(streams[0])]
    for before, after in itertools.pairwise(streams):
        event = provider.create_event()
        before.record_event(event)
        after.wait_event(event)
        results.append(load.on(after, 1, results[-1]))
    streams[-1].synchronize()
    for place, result in enumerate(results):
        load.check(result, 10 + place, f"the result of stream {place}")


@case("stream", requires=_EVENTS, needs=computes)
def the_second_recording_counts(exam: Exam) -> None:
    """An event that is recorded again stands for the later point.

    Kills an event that keeps its first point.
    """
    load, provider = Load(exam), exam.provider
    writer, reader, event = (
        provider.create_stream(),
        provider.create_stream(),
        provider.create_event(),
    )
    writer.record_event(event)
    event.synchronize()
    result = load.on(writer)
    writer.record_event(event)
    reader.wait_event(event)
    after = load.on(reader, 1, result)
    reader.synchronize()
    load.check(after, 11)


@case("stream", requires=_EVENTS, needs=computes)
def unrecorded_events_are_done(exam: Exam) -> None:
    """An event that was never recorded is done: to query, to wait for, and for a stream to wait for.

    Kills a wait for ever, and an error of the driver.
    """
    load, provider = Load(exam), exam.provider
    stream, event = provider.create_stream(), provider.create_event()
    exam.check(event.query() is True, "an event that was never recorded is not done.")
    event.synchronize()
    stream.wait_event(event)
    result = load.on(stream, 2)
    stream.synchronize()
    load.check(result, 2)
    exam.check(event.query() is True, "waiting for an event recorded it.")


@case("stream", requires=_TIMED, needs=computes)
def nobody_waits_too_long(exam: Exam) -> None:
    """An event does not wait for later work, and a stream that waits does not hold the host up.

    Kills an event that stands for all work of its stream, and a wait_event that blocks.
    """
    load, provider = Load(exam), exam.provider
    worker, other = provider.create_stream(), provider.create_stream()
    early, start, end = (provider.create_event() for _ in range(3))
    calls: tuple[tuple[str, Callable[[], object]], ...] = (
        ("waiting for an event before the work", early.synchronize),
        ("telling a stream to wait", lambda: other.wait_event(end)),
    )
    for words, call in calls:
        for _ in range(ATTEMPTS):
            worker.record_event(early)
            worker.record_event(start)
            result = load.on(worker)
            worker.record_event(end)
            began = time.perf_counter()
            call()
            taken = 1e3 * (time.perf_counter() - began)
            worker.synchronize()
            work = end.elapsed_ms(start)
            load.check(result)
            if taken < work / 2:
                break
            load.lengthen(work)
        exam.check(taken < work / 2, f"{words} took {taken:.1f} ms of {work:.1f} ms of work.")


@case("stream", requires=_TIMED)
def elapsed_is_in_milliseconds(exam: Exam) -> None:
    """The time between two events is the host's time between them, in milliseconds.

    Kills seconds or microseconds, and a clock that stands.
    """
    stream, first, second = _stream_and_events(exam, 2)
    outer = time.perf_counter()
    stream.record_event(first)
    first.synchronize()
    inner = time.perf_counter()
    time.sleep(0.03)
    between = 1e3 * (time.perf_counter() - inner)
    stream.record_event(second)
    second.synchronize()
    around = 1e3 * (time.perf_counter() - outer)
    found = second.elapsed_ms(first)
    exam.check(isinstance(found, float), f"the time is a {type(found).__name__}.")
    exam.check(
        0.98 * between - 0.5 <= found <= 1.02 * around + 0.5,
        f"{found:.3f} ms between two events that lie {between:.3f} to {around:.3f} ms apart.",
    )


@case("stream", requires=_TIMED, needs=computes)
def times_are_ordered_and_add_up(exam: Exam) -> None:
    """Times are not negative, an event is at no distance from itself, and distances add up.

    The other order is refused. Kills a sign, an absolute value, and the time of the query.
    """
    load = Load(exam)
    stream, first, second, third = _stream_and_events(exam, 3)
    stream.record_event(first)
    load.on(stream, 3)
    stream.record_event(second)
    load.on(stream, 3)
    stream.record_event(third)
    one, two, both = (
        second.elapsed_ms(first),
        third.elapsed_ms(second),
        third.elapsed_ms(first),
    )
    exam.check(one > 0 and two > 0, f"work took {one} and {two} ms.")
    exam.check(abs(both - one - two) <= 0.01 + 0.001 * both, f"{one} + {two} is not {both} ms.")
    exam.check(first.elapsed_ms(first) == 0, "an event is at a distance from itself.")
    time.sleep(0.01)
    again = third.elapsed_ms(first)
    exam.check(again == both, f"asked again, {both} ms are {again} ms.")
    exam.refuses(InvalidArgumentError, first.elapsed_ms, third)


@case("stream", requires=_TIMED)
def times_of_bad_pairs_are_refused(exam: Exam) -> None:
    """Events that were not recorded, of another provider, or no events at all have no time.

    Kills a time of 0 where there is none.
    """
    stream, recorded, fresh = _stream_and_events(exam, 2)
    stream.record_event(recorded)
    exam.refuses(InvalidArgumentError, recorded.elapsed_ms, fresh, says=("record",))
    exam.refuses(InvalidArgumentError, fresh.elapsed_ms, recorded, says=("record",))
    for junk in (None, 0.0, "start", stream):
        exam.refuses(InvalidArgumentError, recorded.elapsed_ms, junk)
    foreign_stream, foreign = _stream_and_events(exam, 1, exam.make())
    foreign_stream.record_event(foreign)
    exam.refuses(InvalidArgumentError, recorded.elapsed_ms, foreign, says=("provider",))


@case("stream", requires=_EVENTS)
def foreign_events_are_refused(exam: Exam) -> None:
    """A stream takes no event of another provider, and nothing that is no event; both stay whole.

    Kills handles that are passed to the driver unseen.
    """
    stream, event = _stream_and_events(exam, 1)
    _, foreign = _stream_and_events(exam, 1, exam.make())
    for call in (stream.record_event, stream.wait_event):
        exam.refuses(InvalidArgumentError, call, foreign, says=("provider",))
        for junk in (None, 1, "event", stream):
            exam.refuses(InvalidArgumentError, call, junk)
    exam.check(not foreign.recorded, "a refused event is recorded.")
    stream.record_event(event)
    event.synchronize()
    exam.check(event.query() is True, "an event is not done after waiting for it.")


def _simulated(capability: CapabilityDescriptor) -> str | None:
    if capability.device_type != "reference" or "embedding" not in capability.operations:
        return "only a simulated device can be made to fail and go on"
    return None


@case(
    "stream", requires=_EVENTS, needs=_simulated, params={"wait": ("stream", "event", "provider")}
)
def failures_surface_once(exam: Exam) -> None:
    """Work that fails raises at the first wait that covers it, once, and the stream goes on.

    Kills an error that is swallowed, that comes at every wait, or that another stream is told.
    """
    provider = exam.provider
    stream, event = _stream_and_events(exam, 1)
    bystander = provider.create_stream()
    table = provider.from_numpy(np.eye(4, dtype=np.float32))
    good, bad = (provider.from_numpy(np.array([index])) for index in (2, 9))
    kernel = provider.get_kernel("embedding")
    with stream:
        kernel(bad, table)
        result = kernel(good, table)
    stream.record_event(event)
    bystander.synchronize()
    waits: dict[str, Any] = {
        "stream": stream.synchronize,
        "event": event.synchronize,
        "provider": provider.synchronize,
    }
    exam.refuses(BackendError, waits[exam["wait"]], says=("9",))
    for again in waits.values():
        again()
    row = provider.to_numpy(result)
    exam.equal_bits(row, np.eye(4, dtype=np.float32)[[2]], "work behind the failure")


def _stream_and_events(exam: Exam, count: int, provider: Any = None) -> tuple[Any, ...]:
    owner = provider or exam.provider
    events: list[Event] = [owner.create_event() for _ in range(count)]
    return (owner.create_stream(), *events)
