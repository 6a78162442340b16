"""Copies of KV blocks on streams: their order, and what a transfer says of itself."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import KEYS, VALUES, expect, fill, layout_for, written_dtypes
from sagellm_backend.errors import DeadlineExceededError, InvalidArgumentError
from sagellm_backend.kv import KVPool, Transfer

BLOCKS = 12
BUSY_S = 0.1
WAIT_S = 30.0
STREAMS = (Feature.KV_POOL, Feature.STREAM)


def places(capability: CapabilityDescriptor) -> tuple[str, ...]:
    """Where a copy from the device can go."""
    return ("device", "host") if Feature.KV_HOST_POOL in capability.features else ("device",)


def _writes(capability: CapabilityDescriptor) -> str | None:
    missing = [name for name in ("linear", "kv_write") if name not in capability.operations]
    if missing:
        return f"{', '.join(missing)} not declared"
    return None if written_dtypes(capability) else "no pool that kv_write can write to"


@case("kv", requires=STREAMS, params={"place": places}, needs=_writes)
def copies_follow_what_their_stream_was_given_before(exam: Exam) -> None:
    """A copy on a busy stream takes what an earlier kernel of that stream wrote; done() tells so.

    Kills: a copy that overtakes its stream, a transfer that is done at once while it is not, and a
    wait that does not wait.
    """
    provider, stream = exam.provider, exam.provider.create_stream()
    source, target = _pools(exam, exam["place"])
    pages, there = fill(exam, source), fill(exam, target)
    provider.synchronize()
    plan = provider.kv_copy_plan(source, target)
    slots = provider.from_numpy(
        np.arange(source.layout.block_size, dtype=source.layout.index_dtype.numpy)
    )
    tokens, write = _writer(exam, source, slots)
    keep_busy(exam, stream)
    with stream:
        write()
    transfer = plan.copy([0, 5, 3], [7, 2, 11], stream)
    done = transfer.done()
    if done and Feature.STREAM_QUERY in exam.capability.features:
        exam.check(stream.query(), "A copy was done while earlier work of its stream was not.")
    exam.check(
        done or Feature.ASYNC_COPY in exam.capability.features,
        "A copy returned before it was done, and async_copy is not declared.",
    )
    _wait_out(exam, transfer)
    pages[:, KEYS, 0], pages[:, VALUES, 0] = tokens[:, KEYS], tokens[:, VALUES]
    there[:, :, [7, 2, 11]] = pages[:, :, [0, 5, 3]]
    expect(exam, target, there, "The target of a copy behind a kernel")
    expect(exam, source, pages, "The source of a copy behind a kernel")


@case("kv", requires=STREAMS, needs=_writes)
def copies_on_several_streams_all_arrive(exam: Exam) -> None:
    """Transfers of two plans on two streams are under way together and waited for in any order.

    Kills: a transfer that waits for another, and staging memory that two copies share.
    """
    provider = exam.provider
    source, target = _pools(exam, "device")
    pages, there = fill(exam, source), fill(exam, target)
    _, extra = _pools(exam, "device")
    back = fill(exam, extra)
    provider.synchronize()
    streams = [provider.create_stream() for _ in range(2)]
    plans = [provider.kv_copy_plan(source, pool) for pool in (target, extra)]
    transfers = []
    for stream in streams:
        keep_busy(exam, stream, BUSY_S / 4)
    for block in range(0, BLOCKS, 2):
        for plan, stream in zip(plans, streams, strict=True):
            transfers.append(plan.copy([block, block + 1], [block + 1, block], stream))
        for wanted in (there, back):
            wanted[:, :, [block + 1, block]] = pages[:, :, [block, block + 1]]
    for transfer in transfers[::-1]:
        transfer.wait(WAIT_S)
        exam.check(transfer.done(), "A transfer that was waited for is not done.")
    expect(exam, target, there, "The target of the first plan")
    expect(exam, extra, back, "The target of the second plan")


@case("kv", requires=STREAMS)
def copies_refuse_streams_of_others(exam: Exam) -> None:
    """A stream of another provider is refused, and nothing moves.

    Kills: a copy that is queued where nobody waits for it.
    """
    source, target = _pools(exam, "device")
    there = fill(exam, target)
    fill(exam, source)
    plan = exam.provider.kv_copy_plan(source, target)
    stranger = exam.make().create_stream()
    exam.refuses(InvalidArgumentError, plan.copy, [0], [0], stranger, says=("stream",))
    expect(exam, target, there, "After a refused copy")


def keep_busy(exam: Exam, stream: Any, seconds: float = BUSY_S) -> None:
    """Give a stream work for about that long, as far as the device works beside the host."""
    provider = exam.provider
    dtype = written_dtypes(exam.capability)[0]
    matrix = provider.from_numpy(np.zeros((256, 256), dtype.numpy))
    linear = provider.get_kernel("linear", dtype=dtype)
    with stream:
        linear(matrix, matrix)
        stream.synchronize()
        start = time.perf_counter()
        for _ in range(4):
            linear(matrix, matrix)
        given = time.perf_counter() - start
        stream.synchronize()
        taken = time.perf_counter() - start
        if given > taken / 2:
            return  # calls return when their work is done
        for _ in range(min(int(seconds / taken) + 1, 500)):
            for _ in range(4):
                linear(matrix, matrix)


def _pools(exam: Exam, place: str) -> tuple[KVPool, KVPool]:
    written = written_dtypes(exam.capability)
    layout = layout_for(exam.capability, written[0] if written else None)
    source = exam.provider.kv_pool(layout, BLOCKS)
    target = exam.provider.kv_pool(layout, BLOCKS, place)
    for pool in (source, target):
        pool.alloc(BLOCKS)
    return source, target


def _writer(exam: Exam, pool: KVPool, slots: Any) -> tuple[Any, Any]:
    """Tokens for block 0 of every layer, and a function that writes them."""
    provider, layout = exam.provider, pool.layout
    shape = (layout.num_layers, 2, layout.block_size, layout.num_kv_heads, layout.head_dim)
    tokens = exam.fill(shape, layout.dtype)
    native = [[provider.from_numpy(np.ascontiguousarray(part)) for part in row] for row in tokens]
    caches = [(pool.key_cache(layer), pool.value_cache(layer)) for layer in range(shape[0])]
    kernel = provider.get_kernel("kv_write", dtype=layout.dtype)
    provider.synchronize()

    def write() -> None:
        for (key, value), (keys, values) in zip(native, caches, strict=True):
            kernel(key, value, keys, values, slots)

    return tokens, write


def _wait_out(exam: Exam, transfer: Transfer) -> None:
    """A wait that ends too early says so and harms nothing; the next one waits to the end."""
    if not transfer.done():
        try:
            transfer.wait(1e-4)
        except DeadlineExceededError as error:
            exam.check(str(transfer.num_blocks) in str(error), f"{error} names no block count.")
        else:
            exam.check(transfer.done(), "wait() returned before the copy was done.")
    transfer.wait(WAIT_S)
    exam.check(transfer.done(), "wait() returned before the copy was done.")
