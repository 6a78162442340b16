"""Streams: what is given to the stream that is entered is done by it, and not by another."""

from __future__ import annotations

import time

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.load import Load, computes
from sagellm_backend.conformance.suite.stream import ATTEMPTS


@case("stream", requires=(Feature.STREAM,), needs=computes)
def the_entered_stream_does_the_work(exam: Exam) -> None:
    """When the stream that was entered has been waited for, the device has no work left.

    What remains for ``synchronize`` of the whole provider is less than half of the time that the
    work took. Where calls return when their work is done nothing is left for either wait. Kills a
    device that runs its kernels on the default stream although another was entered, and a wait for
    a stream that does not wait.
    """
    load, provider = Load(exam), exam.provider
    for _ in range(ATTEMPTS):
        stream = provider.create_stream()
        began = time.perf_counter()
        result = load.on(stream)
        stream.synchronize()
        waited = time.perf_counter()
        provider.synchronize()
        left, whole = 1e3 * (time.perf_counter() - waited), 1e3 * (time.perf_counter() - began)
        load.check(result)
        if left < whole / 2:
            break
        load.lengthen(whole)
    exam.measure("left_ms", left)
    exam.check(
        left < whole / 2,
        f"after the entered stream was waited for, {left:.1f} of {whole:.1f} ms of work were left.",
    )
