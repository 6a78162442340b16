"""Streams: work in order, waits that wait, and streams that are entered and left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.load import Load, computes
from sagellm_backend.errors import BackendError, UnavailableError
from sagellm_backend.streams import Stream, entered_stream

_STREAM = (Feature.STREAM,)
ATTEMPTS = 3
"""Tries of a call that must be quick: a busy host may hold up one of them, not all."""

_WAITS = ("stream-synchronize", "event-synchronize", "provider-synchronize", "event-query")


def _writes(capability: CapabilityDescriptor) -> str | None:
    return None if "kv_write" in capability.operations else "no operation writes in place"


def _submit_writes(exam: Exam, count: int) -> None:
    """Write ``count`` values into one slot and each into a slot of its own, in one stream."""
    provider = exam.provider
    dtype = exam.capability.operations["kv_write"][0]
    kernel = provider.get_kernel("kv_write", dtype=dtype)
    tokens = exam.fill((count, 2, 1, 8), dtype)
    tokens[:, 1] = tokens[:, 0]
    arrays = [provider.from_numpy(token) for token in tokens]
    slots = [provider.from_numpy(np.array([0, 1 + step], np.int64)) for step in range(count)]
    caches = [provider.from_numpy(np.zeros((1, count + 1, 1, 8), dtype.numpy)) for _ in range(2)]
    provider.synchronize()
    with provider.create_stream() as stream:
        for token, slot in zip(arrays, slots, strict=True):
            kernel(token, token, *caches, slot)
    stream.synchronize()
    wanted = np.concatenate([tokens[-1:, 0], tokens[:, 0]])[None]
    for cache, name in zip(caches, ("keys", "values"), strict=True):
        exam.equal_bits(provider.to_numpy(cache), wanted, name)


@case("stream", requires=_STREAM, needs=_writes)
def order_within_a_stream(exam: Exam) -> None:
    """Of 200 rapid writes to one place the last one stays, and none is lost.

    Kills a stream that runs its work out of order, twice, or not at all.
    """
    _submit_writes(exam, 200)


@case("stream", requires=_STREAM, needs=_writes, depth="stress")
def order_of_thousands(exam: Exam) -> None:
    """As 200 rapid writes, so 3,000: a full queue loses nothing.

    Kills a queue that drops what it has no room for.
    """
    _submit_writes(exam, 3000)


@case("stream", requires=_STREAM, needs=computes)
def results_are_right_after_synchronize(exam: Exam) -> None:
    """What kernels computed on a stream is right when the stream was waited for, and so elsewhere.

    Kills a kernel that runs on another stream than the one entered, unordered with it.
    """
    load = Load(exam)
    stream = exam.provider.create_stream()
    result = load.on(stream)
    stream.synchronize()
    load.check(load.run(2, result), 12, "work without a stream, after one was waited for")
    load.check(result)


@case(
    "stream",
    requires=(Feature.STREAM, Feature.EVENT_TIMING),
    needs=computes,
    params={"wait": _WAITS},
)
def waiting_waits(exam: Exam) -> None:
    """When a wait returns, or a query says done, the time that the work takes has passed.

    Kills a synchronisation that does nothing, and a query that always says yes.
    """
    load, provider = Load(exam), exam.provider
    stream, start, end = (
        provider.create_stream(),
        provider.create_event(),
        provider.create_event(),
    )
    waits: dict[str, Callable[[], object]] = {
        "stream-synchronize": stream.synchronize,
        "event-synchronize": end.synchronize,
        "provider-synchronize": provider.synchronize,
        "event-query": lambda: _poll(exam, end.query),
    }
    began = time.perf_counter()
    stream.record_event(start)
    result = load.on(stream)
    stream.record_event(end)
    waits[exam["wait"]]()
    passed = 1e3 * (time.perf_counter() - began)
    _check_window(exam, end.elapsed_ms(start), passed)
    load.check(result)


@case(
    "stream",
    requires=(Feature.STREAM_QUERY, Feature.EVENT_TIMING),
    needs=computes,
)
def stream_query_tells_the_truth(exam: Exam) -> None:
    """``Stream.query`` says no while there is work, at once, and yes when it is done.

    Kills a query that always says yes, one that never does, and one that waits.
    """
    load, provider = Load(exam), exam.provider
    stream, start, end = (
        provider.create_stream(),
        provider.create_event(),
        provider.create_event(),
    )
    exam.check(stream.query() is True, "a stream without work is not done.")
    for _ in range(ATTEMPTS):
        began = time.perf_counter()
        stream.record_event(start)
        result = load.on(stream)
        stream.record_event(end)
        asked = time.perf_counter()
        stream.query()
        taken = 1e3 * (time.perf_counter() - asked)
        _poll(exam, stream.query)
        passed = 1e3 * (time.perf_counter() - began)
        work = end.elapsed_ms(start)
        _check_window(exam, work, passed)
        load.check(result)
        if taken < work / 2:
            return
        load.lengthen(work)
    exam.check(condition=False, message=f"a query took {taken:.1f} ms of {work:.1f} ms of work.")


def _poll(exam: Exam, query: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not query():
        exam.check(time.monotonic() < limit, "after 20 s a query still says that work is left.")
        time.sleep(1e-4)


def _check_window(exam: Exam, work: float, passed: float) -> None:
    """The device cannot have worked longer than the host waited; its clock may be 2 % off."""
    exam.measure("work_ms", work)
    exam.measure("host_ms", passed)
    exam.check(
        work <= 1.02 * passed + 0.5, f"{work:.2f} ms of work were done within {passed:.2f} ms."
    )


@case("stream", requires=_STREAM)
def entering_nests_and_restores(exam: Exam) -> None:
    """The innermost stream is current, the outer one is when it is left, an exception included.

    Another thread, and another provider, see nothing of it. Kills a stream that stays current, and
    one that is current for all threads.
    """
    provider, other = exam.provider, exam.make()
    outer, inner = provider.create_stream(), provider.create_stream()
    seen: list[Stream | None] = []

    def current() -> Stream | None:
        return entered_stream(provider)

    with outer as bound:
        exam.check(bound is outer and current() is outer, "an entered stream is not current.")
        with inner:
            exam.check(current() is inner, "the inner stream is not current.")
            exam.check(entered_stream(other) is None, "another provider's stream is current.")
            thread = threading.Thread(target=lambda: seen.append(current()))
            thread.start()
            thread.join()
        exam.check(current() is outer, "the outer stream is not current again.")
        try:
            with inner:
                raise KeyError("left by an exception")
        except KeyError:
            pass
        exam.check(current() is outer, "an exception left the inner stream current.")
        with outer:
            pass
        exam.check(current() is outer, "entering a stream twice lost it.")
    exam.check(current() is None, "a stream is current that was left.")
    exam.check(seen == [None], f"another thread sees {seen}.")


@case("stream", requires=(Feature.STREAM, Feature.EVENT), needs=computes)
def work_goes_to_the_stream_entered(exam: Exam) -> None:
    """Kernels go to the innermost stream that is entered, and to the outer one after it is left.

    Shown by events, each of which covers the work of its own stream. Kills a nested stream whose
    work, or whose outer stream's work afterwards, goes elsewhere.
    """
    load, provider = Load(exam), exam.provider
    outer, inner, reader = (provider.create_stream() for _ in range(3))
    with outer:
        with inner:
            first = load.run()
        second = load.run(3)
    for stream, result, steps in ((inner, first, 10), (outer, second, 3)):
        event = provider.create_event()
        stream.record_event(event)
        reader.wait_event(event)
        after = load.on(reader, 1, result)
        reader.synchronize()
        load.check(after, steps + 1, f"what was read behind the work of {steps} steps")


@case("stream", requires=_STREAM, needs=computes)
def threads_have_streams_of_their_own(exam: Exam) -> None:
    """Threads that each work on a stream of their own get their own results.

    Kills a current stream, or scratch memory, that threads share.
    """
    load, troubles = Load(exam), list[str]()
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        try:
            stream = exam.provider.create_stream()
            results[number] = load.on(stream, number + 1)
            stream.synchronize()
        except BackendError as error:
            troubles.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exam.check(not troubles, f"{troubles[:1]}")
    for number, result in results.items():
        load.check(result, number + 1, f"the result of thread {number}")


@case("stream", requires=_STREAM, needs=computes)
def a_failed_call_harms_nothing(exam: Exam) -> None:
    """A kernel that fails at its call raises there, once; stream and provider work on.

    Kills an error that comes again at the next wait, and a stream that is lost by it.
    """
    load, provider = Load(exam), exam.provider

    def faulty(x: Any) -> Any:
        raise RuntimeError(f"planted, for {type(x).__name__}")

    provider.register_kernel("softmax", faulty)
    with provider.create_stream() as stream:
        before = load.run(2)
        exam.refuses(UnavailableError, provider.get_kernel("softmax"), load.matrix)
        after = load.run(3, before)
    stream.synchronize()
    provider.synchronize()
    load.check(after, 5)
