"""Core: memory statistics say what this provider holds, when it holds it, and nobody else's."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pools import plain_layout
from sagellm_backend.dtypes import DType
from sagellm_backend.memory import MemoryStats

_OWN = (
    "allocated_bytes",
    "peak_allocated_bytes",
    "kv_bytes",
    "graph_bytes",
    "other_bytes",
    "reserved_bytes",
    "limit_bytes",
)
_MIB = 1 << 20
_ROUNDING = _MIB
"""How much an allocator may add to a request of several MiB."""


def own(exam: Exam, provider: Any = None, location: str | None = None) -> dict[str, int]:
    """The figures of a provider's own memory, once young garbage is collected."""
    gc.collect(1)
    stats: Any = (provider or exam.provider).memory_stats(location)
    return {name: stats[name] for name in _OWN}


@case("core")
def statistics_are_complete(exam: Exam) -> None:
    """``memory_stats`` has every figure and no other, in bytes, and they add up, at every location.

    Kills a figure that is missing, negative, in other units, or that does not fit the others.
    """
    provider = exam.provider
    kept = [provider.from_numpy(exam.fill(1000, DType.FP32), place) for place in ("device", "host")]
    devices = [f"{provider.device_type}:{index}" for index in range(len(exam.capability.devices))]
    for location in (None, "device", "host", *devices):
        stats: dict[str, int] = dict(provider.memory_stats(location))  # type: ignore[arg-type]
        where = f"at {location}: {stats}"
        exam.check(set(stats) == set(MemoryStats.__annotations__), f"other figures {where}.")
        exam.check(all(type(n) is int and n >= 0 for n in stats.values()), f"no count {where}.")
        parts = stats["kv_bytes"] + stats["graph_bytes"] + stats["other_bytes"]
        exam.check(parts == stats["allocated_bytes"], f"parts of {parts} {where}.")
        exam.check(
            stats["allocated_bytes"] <= stats["reserved_bytes"] <= stats["limit_bytes"]
            and stats["allocated_bytes"] <= stats["peak_allocated_bytes"],
            f"the figures contradict each other {where}.",
        )
        exam.check(
            stats["device_free_bytes"] <= stats["device_total_bytes"] > 0,
            f"the device's figures cannot be {where}.",
        )
    exam.check(len(kept) == 2, "the arrays were lost.")


@case("core")
def arrays_are_counted_while_they_live(exam: Exam) -> None:
    """An array counts as ``other`` from its making until its last view is gone, to the byte.

    Up to the allocator's rounding. Kills a free that gives nothing back, a count in elements, and
    one that ends with the first of two views.
    """
    provider = exam.provider
    makers: tuple[Callable[[], Any], ...] = (
        lambda: provider.empty(5 * _MIB + 13, DType.INT8),
        lambda: provider.from_numpy(np.zeros(5 * _MIB + 13, np.int8)),
        lambda: provider.empty((1 + 5 * _MIB // 4, 1), DType.FP32),
    )
    for make in makers:
        before = own(exam)
        array = make()
        during = own(exam)
        grown = during["other_bytes"] - before["other_bytes"]
        exam.check(
            5 * _MIB < grown <= 5 * _MIB + _ROUNDING, f"an array of 5 MiB counts {grown:,} bytes."
        )
        exam.check(during["allocated_bytes"] - before["allocated_bytes"] == grown, f"{during}.")
        view = array.reshape(-1)
        del array
        exam.check(own(exam) == during, "the memory of a live view is given back.")
        del view
        after = own(exam)
        exam.check(
            after["other_bytes"] == before["other_bytes"],
            f"{after['other_bytes'] - before['other_bytes']:,} bytes of a dead array still count.",
        )


@case("core")
def the_peak_stays(exam: Exam) -> None:
    """The peak is the most that was ever held: no query resets it, and no smaller array moves it.

    Kills a peak that is that of the last query, or of the last allocation.
    """
    provider = exam.provider
    arrays = [provider.empty(4 * _MIB, DType.INT8) for _ in range(2)]
    held = own(exam)["allocated_bytes"]
    del arrays
    peak = own(exam)["peak_allocated_bytes"]
    exam.check(
        8 * _MIB <= held <= peak, f"the peak is {peak:,} after {held:,} bytes were allocated."
    )
    small = provider.empty(_MIB, DType.INT8)
    for _ in range(3):
        again = own(exam)["peak_allocated_bytes"]
        exam.check(again == peak, f"the peak went from {peak:,} to {again:,}.")
    exam.check(tuple(small.shape) == (_MIB,), "the array was lost.")


@case("core")
def queries_change_nothing(exam: Exam) -> None:
    """Asking for statistics, capability or explanations allocates and frees nothing.

    Kills a query that empties a cache, or that keeps what it made to answer.
    """
    kept = exam.provider.from_numpy(exam.fill(1000, DType.FP32))
    before = own(exam)
    for _ in range(20):
        exam.provider.memory_stats()
        exam.provider.memory_stats("host")
        exam.provider.capability()
        for name in exam.capability.operations:
            exam.provider.explain(name)
    after = own(exam)
    exam.check(after == before, f"queries changed {before} to {after}.")
    exam.check(tuple(kept.shape) == (1000,), "the array was lost.")


@case("core")
def another_providers_memory_is_not_ours(exam: Exam) -> None:
    """What a second provider of this process holds does not count as this one's, and peaks alike.

    Kills a provider that reports the statistics of the whole device, or process, as its own.
    """
    other = exam.make()
    mine = exam.provider.empty(_MIB, DType.INT8)
    before = own(exam)
    theirs = other.empty(6 * _MIB, DType.INT8)
    after = own(exam)
    exam.check(after == before, f"6 MiB of another provider changed {before} to {after}.")
    held = own(exam, other)["allocated_bytes"]
    exam.check(
        6 * _MIB <= held <= 6 * _MIB + _ROUNDING, f"the other provider counts {held:,} of 6 MiB."
    )
    exam.check(tuple(mine.shape) != tuple(theirs.shape), "an array was lost.")


@case("core", devices=2)
def devices_are_counted_apart(exam: Exam) -> None:
    """Memory of one device does not count on another.

    Kills a provider with one account for all devices, and a location that is ignored.
    """
    provider = exam.provider
    first, second = (f"{provider.device_type}:{index}" for index in range(2))
    before = own(exam, location=first), own(exam, location=second)
    array = provider.empty(2 * _MIB, DType.INT8, second)
    after = own(exam, location=first), own(exam, location=second)
    exam.check(after[0] == before[0], f"an array of {second} changed the account of {first}.")
    grown = after[1]["other_bytes"] - before[1]["other_bytes"]
    exam.check(grown >= 2 * _MIB, f"an array of 2 MiB on {second} counts {grown:,} bytes there.")
    exam.check(tuple(array.shape) == (2 * _MIB,), "the array was lost.")


@case("core")
def host_memory_is_counted(exam: Exam) -> None:
    """Arrays in host memory count at ``host``, and no longer than they live.

    Kills host memory that nobody counts.
    """
    before = own(exam, location="host")
    array = exam.provider.empty(3 * _MIB, DType.INT8, "host")
    grown = own(exam, location="host")["other_bytes"] - before["other_bytes"]
    exam.check(
        3 * _MIB <= grown <= 3 * _MIB + _ROUNDING, f"3 MiB of host memory count {grown:,} bytes."
    )
    del array
    after = own(exam, location="host")
    exam.check(after["other_bytes"] == before["other_bytes"], f"host memory stays: {after}.")


@case("core", requires=(Feature.KV_POOL,))
def pools_are_counted_to_the_byte(exam: Exam) -> None:
    """A pool counts as ``kv`` with the bytes of its layout, until it is closed or collected.

    Kills pools that count twice, as arrays, or for ever.
    """
    layout = plain_layout(exam)
    before = own(exam)
    for release in ("close", "collect"):
        pool: Any = exam.provider.kv_pool(layout, 37)
        during = own(exam)
        grown = during["kv_bytes"] - before["kv_bytes"]
        exam.check(
            grown == layout.nbytes(37) and during["other_bytes"] == before["other_bytes"],
            f"a pool of {layout.nbytes(37):,} bytes counts {grown:,}: {during}.",
        )
        if release == "close":
            pool.close()
        else:
            pool = None
        after = own(exam)
        exam.check(
            after["kv_bytes"] == before["kv_bytes"],
            f"a pool still counts after {release}: {after}.",
        )


@case("core")
def clear_cache_keeps_what_lives(exam: Exam) -> None:
    """``clear_cache`` leaves nothing reserved but what is held, and no live byte changes.

    Kills a cache that is never given back, and one that is given back with live arrays in it.
    """
    provider = exam.make(kv_blocks=32)
    data = exam.fill((999, 7), DType.FP32)
    array = provider.from_numpy(data)
    dead = [provider.empty(_MIB, DType.INT8) for _ in range(3)]
    if Feature.KV_POOL in exam.capability.features:
        provider.kv_block_free(provider.kv_block_alloc(100, exam.capability.kv.dtypes[0]))
    dead.clear()
    gc.collect(1)
    provider.clear_cache()
    stats = own(exam, provider)
    idle = stats["reserved_bytes"] - stats["allocated_bytes"]
    exam.check(idle <= 2 * _ROUNDING, f"{idle:,} bytes stay reserved: {stats}.")
    exam.equal_bits(provider.to_numpy(array), data, "a live array after clear_cache()")
