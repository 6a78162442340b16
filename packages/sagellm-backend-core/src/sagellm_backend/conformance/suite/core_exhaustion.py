"""Core: memory that runs out is said with numbers, costs nothing, and can be asked for again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pools import plain_layout
from sagellm_backend.conformance.suite.core_memory import own
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import BackendError, ErrorCode, OutOfMemoryError

_MIB = 1 << 20
_LIMIT = 8 * _MIB


def _numbers(exam: Exam, error: BackendError, requested: int, limit: int) -> None:
    """The error has the three numbers, and they are true."""
    found = error.numbers
    exam.check(
        {"requested", "free", "limit"} <= set(found), f"the error has only {found}: {error}."
    )
    exam.check(found["requested"] >= requested, f"{requested:,} were requested: {found}.")
    exam.check(found["limit"] == limit, f"the limit is {limit:,}: {found}.")
    exam.check(
        0 <= found["free"] < found["requested"] and found["free"] <= limit,
        f"free {found['free']:,} is no reason: {found}.",
    )
    exam.check(bool(error.hint), "no next step is named.")
    exam.check(error.code is ErrorCode.RESOURCE_EXHAUSTED, f"the code is {error.code}.")


@case("core")
def too_large_a_request_is_refused(exam: Exam) -> None:
    """A request beyond the limit is an OutOfMemoryError with requested, free and limit.

    Nothing is held by it, and a request that fits succeeds after it. Kills a limit that is not
    kept, an error without numbers, a count that stays after the refusal.
    """
    provider = exam.make(memory_limit=_LIMIT)
    exam.check(
        provider.memory_stats()["limit_bytes"] == _LIMIT,
        f"memory_limit is {_LIMIT:,}: {provider.memory_stats()}.",
    )
    first = provider.from_numpy(np.arange(99, dtype=np.int32))
    before = own(exam, provider)
    for call, arguments in (
        (provider.empty, (_LIMIT + 1, DType.INT8)),
        (provider.empty, ((1 << 40, 1 << 10), DType.FP32)),
        (provider.from_numpy, (np.zeros(_LIMIT + 1, np.int8),)),
    ):
        error = exam.refuses(OutOfMemoryError, call, *arguments)
        _numbers(exam, error, _LIMIT + 1, _LIMIT)
        after = own(exam, provider)
        exam.check(after == before, f"a refused request changed {before} to {after}.")
    second = provider.from_numpy(np.arange(7, dtype=np.int32))
    exam.equal_bits(provider.to_numpy(first), np.arange(99, dtype=np.int32), "the first array")
    exam.equal_bits(provider.to_numpy(second), np.arange(7, dtype=np.int32), "the second array")


@case("core")
def memory_can_be_filled_and_used_again(exam: Exam) -> None:
    """Memory fills to its limit and not beyond, and every array freed makes room for another.

    Kills a limit that counts what was freed, and one that leaves half of the memory unused.
    """
    provider = exam.make(memory_limit=_LIMIT)
    arrays: list[Any] = []
    try:
        while len(arrays) <= _LIMIT // _MIB:
            arrays.append(provider.empty(_MIB - 4096, DType.INT8))
    except OutOfMemoryError:
        pass
    exam.check(
        _LIMIT // _MIB - 2 <= len(arrays) <= _LIMIT // _MIB,
        f"{len(arrays)} arrays of 1 MiB fit in {_LIMIT:,} bytes.",
    )
    for _ in range(3):
        exam.refuses(OutOfMemoryError, provider.empty, 2 * _MIB, DType.INT8)
        del arrays[0]
        arrays.append(provider.empty(_MIB - 4096, DType.INT8))
    held = own(exam, provider)
    exam.check(held["reserved_bytes"] <= _LIMIT, f"more is held than the limit: {held}.")


@case("core", requires=(Feature.KV_POOL,))
def too_large_a_pool_is_refused(exam: Exam) -> None:
    """A pool beyond the limit is refused with numbers, and the largest that fits is made.

    Kills pools that are not held against the limit.
    """
    layout = plain_layout(exam)
    limit = layout.nbytes(16)
    provider = exam.make(memory_limit=limit)
    before = own(exam, provider)
    error = exam.refuses(OutOfMemoryError, provider.kv_pool, layout, 17)
    _numbers(exam, error, layout.nbytes(17), limit)
    exam.check(own(exam, provider) == before, "a refused pool changed the statistics.")
    with provider.kv_pool(layout, 16):
        exam.refuses(OutOfMemoryError, provider.kv_pool, layout, 1)
        exam.refuses(OutOfMemoryError, provider.empty, _MIB, DType.INT8)
    provider.kv_pool(layout, 16).close()


@case("core")
def more_than_the_device_has_is_refused(exam: Exam) -> None:
    """Without a limit of ours the device's memory is the limit, and asking for more is typed.

    Kills a framework's own error that comes through, and a process that dies of it.
    """
    error = exam.refuses(OutOfMemoryError, exam.provider.empty, (1 << 20, 1 << 30), DType.INT8)
    exam.check(error.numbers.get("requested", 0) >= 1 << 50, f"no true numbers: {error.numbers}.")
    array = exam.provider.from_numpy(np.arange(5, dtype=np.int32))
    exam.equal_bits(exam.provider.to_numpy(array), np.arange(5, dtype=np.int32), "the next array")


@case("core")
def threads_allocate_together(exam: Exam) -> None:
    """Threads that make and drop arrays at once get their own bytes, within the limit, all counted.

    Kills a race in the accounts, and memory that is handed to two threads.
    """
    provider = exam.make(memory_limit=_LIMIT)
    before = own(exam, provider)
    troubles: list[str] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        rng = np.random.default_rng([exam.seed, number])
        start.wait()
        for _ in range(60):
            data = rng.integers(-128, 128, int(rng.integers(1, 40_000)), np.int8)
            try:
                array = provider.from_numpy(data)
                spare = provider.empty(int(rng.integers(1, _LIMIT // 2)), DType.INT8)
                del spare
            except OutOfMemoryError:
                continue
            except Exception as error:  # noqa: BLE001 - whatever a thread meets is the finding
                troubles.append(f"{type(error).__name__}: {error}")
                return
            if provider.to_numpy(array).tobytes() != data.tobytes():
                troubles.append("an array came back with the bytes of another thread.")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    exam.check(not troubles, f"{len(troubles)} troubles, the first: {troubles[:1]}.")
    after = own(exam, provider)
    peak = after.pop("peak_allocated_bytes")
    before.pop("peak_allocated_bytes")
    exam.check(0 < peak <= _LIMIT, f"the peak is {peak:,} of {_LIMIT:,}.")
    exam.check(
        after["allocated_bytes"] == before["allocated_bytes"],
        f"after the threads {before} became {after}.",
    )
