"""Core: the optional features of KV pools, and their absence."""

from __future__ import annotations

from typing import Any

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import expect, fill
from sagellm_backend.conformance.pools import plain_layout
from sagellm_backend.conformance.suite.core_features import refused
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.kv import KVPool
from sagellm_backend.streams import Stream


def _copied(exam: Exam, source: KVPool, target: KVPool, stream: Stream | None) -> None:
    """Copy some blocks of distinct bits, and give the source others as soon as the copy is done."""
    provider = exam.provider
    before, there = fill(exam, source), fill(exam, target)
    provider.synchronize()
    sources, targets = source.alloc(3)[[2, 0, 1]], target.alloc(3)[::-1].copy()
    transfer = provider.kv_copy_plan(source, target).copy(sources, targets, stream)
    transfer.wait()
    exam.check(transfer.done(), "a transfer is under way after it was waited for.")
    after = fill(exam, source)
    there[:, :, targets] = before[:, :, sources]
    expect(exam, target, there, "the target of a copy")
    expect(exam, source, after, "the source of a copy, which was overwritten after it")


@case("core", without=Feature.ASYNC_COPY)
def no_async_copy(exam: Exam) -> None:
    """Without asynchronous copies the claim is refused, and a copy is done when its call returns.

    Kills a copy that is late though nobody was told.
    """
    refused(exam, Feature.ASYNC_COPY)
    features = exam.capability.features
    if {Feature.KV_POOL, Feature.STREAM} <= features:
        layout = plain_layout(exam)
        source, target = (exam.provider.kv_pool(layout, 4) for _ in range(2))
        plan = exam.provider.kv_copy_plan(source, target)
        stream = exam.provider.create_stream()
        transfer = plan.copy(source.alloc(2), target.alloc(2), stream)
        exam.check(transfer.done(), "a copy is under way after its call returned.")


@case("core", requires=(Feature.ASYNC_COPY, Feature.STREAM, Feature.KV_POOL))
def async_copy(exam: Exam) -> None:
    """A copy that was given a stream has been made, whole, when it was waited for.

    The target holds what the source held before the wait, and its other blocks are as they were.
    Kills a wait that does not, and a copy that reads its source after it was said to be done.
    """
    layout = plain_layout(exam)
    source, target = (exam.provider.kv_pool(layout, 5) for _ in range(2))
    _copied(exam, source, target, exam.provider.create_stream())


@case("core", requires=(Feature.KV_PEER_COPY, Feature.KV_POOL), devices=2)
def peer_copy(exam: Exam) -> None:
    """Blocks move between pools of two devices, both ways, bit for bit, and no others do.

    Kills a copy that goes to the wrong device, that does nothing, or that moves a neighbour too.
    """
    layout, kind = plain_layout(exam), exam.provider.device_type
    first, second = (exam.provider.kv_pool(layout, 6, f"{kind}:{index}") for index in range(2))
    _copied(exam, first, second, None)
    _copied(exam, second, first, None)


@case("core", without=Feature.KV_PEER_COPY, requires=(Feature.KV_POOL,), devices=2)
def no_peer_copy(exam: Exam) -> None:
    """Without peer copies, a plan between pools of two devices is refused.

    Kills a copy that goes to the wrong device.
    """
    layout, kind = plain_layout(exam), exam.provider.device_type
    pools = [exam.provider.kv_pool(layout, 2, f"{kind}:{index}") for index in range(2)]
    refused(exam, Feature.KV_PEER_COPY, (exam.provider.kv_copy_plan, *pools))


@case("core", without=Feature.KV_EXPORT)
def no_kv_export(exam: Exam) -> None:
    """Without export, making and opening a handle of a pool is refused.

    Kills an empty handle, and one that means nothing elsewhere.
    """
    calls: list[Any] = [(exam.provider.kv_open, b"handle")]
    if Feature.KV_POOL in exam.capability.features:
        calls.append((exam.provider.kv_export, exam.provider.kv_pool(plain_layout(exam), 2)))
    refused(exam, Feature.KV_EXPORT, *calls)


@case("core", requires=(Feature.KV_EXPORT,))
def kv_export_gives_handles(exam: Exam) -> None:
    """A pool's handle is bytes; foreign and closed pools have none, and junk opens nothing.

    Kills a handle of a pool that is gone.
    """
    provider, layout = exam.provider, plain_layout(exam)
    with provider.kv_pool(layout, 2) as pool:
        handle: object = provider.kv_export(pool)
        exam.check(isinstance(handle, bytes) and bool(handle), f"the handle is {handle!r}.")
    exam.refuses(UnavailableError, provider.kv_export, pool)
    exam.refuses(InvalidArgumentError, provider.kv_export, exam.make().kv_pool(layout, 2))
    handles: tuple[Any, ...] = (None, "handle", 3, b"", b"handle", bytes(4096))
    for junk in handles:
        exam.refuses(InvalidArgumentError, provider.kv_open, junk)
