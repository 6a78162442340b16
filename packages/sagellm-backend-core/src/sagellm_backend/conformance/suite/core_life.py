"""Core: providers come and go and leave nothing behind."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.suite.core_memory import own
from sagellm_backend.dtypes import DType

_GRACE_S = 2.0
"""How long a thread may take to end after its provider was closed."""


@case("core")
def ten_lives_leave_nothing(exam: Exam) -> None:
    """Made, used and closed ten times, a provider leaves no thread and holds no byte.

    Kills a thread that is not joined, and memory that outlives its provider.
    """
    features, before = exam.capability.features, set(threading.enumerate())
    for life in range(10):
        provider = exam.make(kv_blocks=8)
        fresh = own(exam, provider) if life in {0, 9} else {"allocated_bytes": 0}
        exam.check(fresh["allocated_bytes"] == 0, f"a new provider holds {fresh}.")
        data = exam.fill((100, 11), DType.FP32)
        array = provider.from_numpy(data)
        if Feature.STREAM in features:
            with provider.create_stream() as stream:
                provider.from_numpy(data)
            stream.synchronize()
        if Feature.KV_POOL in features:
            provider.kv_block_free(provider.kv_block_alloc(20, exam.capability.kv.dtypes[0]))
        exam.equal_bits(provider.to_numpy(array), data, f"life {life}")
        del array
        gc.collect(1)
        provider.close()
        left = provider.memory_stats()
        exam.check(
            left["allocated_bytes"] == left["reserved_bytes"] == 0,
            f"a closed provider holds {left}.",
        )
    deadline = time.monotonic() + _GRACE_S
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    stray = [thread.name for thread in threading.enumerate() if thread not in before]
    exam.check(not stray, f"{len(stray)} threads are left after ten lives: {stray[:3]}.")


@case("core")
def closing_one_leaves_the_other(exam: Exam) -> None:
    """A provider that is closed takes nothing from another of the same process.

    Kills a shut-down of what all providers share.
    """
    other = exam.make()
    data = exam.fill((31, 3), DType.FP32)
    mine = exam.provider.from_numpy(data)
    theirs = other.from_numpy(data)
    exam.check(tuple(theirs.shape) == (31, 3), "the array has another shape.")
    other.close()
    exam.equal_bits(exam.provider.to_numpy(mine), data, "an array of the provider that is open")
    exam.provider.synchronize()
    again = exam.provider.from_numpy(np.arange(9, dtype=np.int32))
    exam.equal_bits(exam.provider.to_numpy(again), np.arange(9, dtype=np.int32), "a new array")


@case("core")
def synchronize_is_always_allowed(exam: Exam) -> None:
    """``synchronize`` and ``clear_cache`` return with nothing to do, as often as they are called.

    Kills a wait for work that never was.
    """
    for _ in range(3):
        exam.provider.synchronize()
        exam.provider.clear_cache()
    before = own(exam)
    exam.check(before["allocated_bytes"] == 0, f"an unused provider holds {before}.")
