"""Streams: priorities are taken as hints, and nothing else is taken for one."""

from __future__ import annotations

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.load import Load, computes
from sagellm_backend.errors import InvalidArgumentError

_STREAM = (Feature.STREAM,)


@case("stream", requires=_STREAM, params={"priority": (-5, 0, 1, 100)}, needs=computes)
def priorities_are_hints(exam: Exam) -> None:
    """A stream of any priority is made and works.

    Kills a priority that reaches the driver unchecked.
    """
    load = Load(exam)
    stream = exam.provider.create_stream(priority=exam["priority"])
    result = load.on(stream, 2)
    stream.synchronize()
    load.check(result, 2)


@case("stream", requires=(Feature.STREAM, Feature.STREAM_PRIORITY), needs=computes)
def urgent_streams_work_beside_others(exam: Exam) -> None:
    """Streams of every urgency work at once, know their priority, and each gives its own result.

    Kills priorities that share a queue with others' work and lose it.
    """
    load = Load(exam)
    streams = [exam.provider.create_stream(priority) for priority in (0, 10, -10, 1)]
    results = [load.on(stream, steps + 1) for steps, stream in enumerate(streams)]
    exam.provider.synchronize()
    for steps, result in enumerate(results):
        load.check(result, steps + 1, f"the result at priority {streams[steps].priority}")
    found = [stream.priority for stream in streams]
    exam.check(found == [0, 10, -10, 1], f"the streams say that their priorities are {found}.")


@case("stream", requires=_STREAM)
def bad_priorities_are_refused(exam: Exam) -> None:
    """What is no integer from -100 to 100 is no priority.

    Kills a provider that takes a boolean, a text or NaN for a number.
    """
    for junk in (None, "high", 1.5, float("nan"), True, 10**9, -101, [0], object()):
        exam.refuses(InvalidArgumentError, exam.provider.create_stream, junk, says=("priority",))
