"""The KV cache: block ids, copies of blocks, swaps."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import Literal

import numpy as np

from sagellm_backend.bench.memcpy import BlockMemcpy
from sagellm_backend.bench.row import (
    GB_PER_S,
    NANOSECONDS,
    Absent,
    Match,
    Row,
    Side,
    Target,
    add,
)
from sagellm_backend.bench.session import Array, Session
from sagellm_backend.bench.timing import repeated
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import UnavailableError
from sagellm_backend.kv import BlockAllocator, KVLayout

BLOCKS, _OUTSTANDING = 16384, 12288
POOL, MEMCPY = "vLLM BlockPool", "libc memcpy"
_COPIED, _BATCHES, _IDS = 512, 8, 4096
_LAYOUT = KVLayout(1, 8, 64, 16, DType.BF16)


def _block_ids(session: Session, batch: int) -> Match:
    allocator = BlockAllocator(BLOCKS)
    rounds = range(min(_OUTSTANDING // batch, 100))

    def once() -> None:
        held = [allocator.alloc(batch) for _ in rounds]
        for ids in held:
            allocator.free(ids)

    config = {"blocks": BLOCKS, "batch": batch, "rounds": len(rounds)}
    pool = session.peer("vllm", POOL, "vllm_block_pool.py", config)
    note = f"{len(rounds)} batches of {BLOCKS:,} blocks are taken, then all are given back"
    return Match(session.ours(once), [pool], batch * len(rounds), note=note)


def _copies(session: Session, away: Literal["device", "host"]) -> Match:
    """Batches of pages from one half of a pool to the other, or to the host and back."""
    provider = session.provider
    count = 32 if session.quick else _COPIED
    ids = 8 * count if session.quick else _IDS
    near, far = (provider.kv_pool(_LAYOUT, ids, where) for where in ("device", away))
    near.alloc(ids)
    far.alloc(ids)
    batches = [session.rng.permutation(ids)[: 2 * count].reshape(2, count) for _ in range(_BATCHES)]
    if away == "device":
        plans = cycle([(provider.kv_copy_plan(near, near), *batch) for batch in batches])
    else:
        ways = [provider.kv_copy_plan(near, far), provider.kv_copy_plan(far, near)]
        plans = cycle([(ways[i % 2], *batch) for i, batch in enumerate(batches)])

    def once() -> None:
        plan, sources, targets = next(plans)
        plan.copy(sources, targets)

    nbytes = count * _LAYOUT.page_bytes
    # A block id is a page here: a block of keys and one of values.
    each = _LAYOUT.block_bytes
    note = f"{2 * count:,} blocks of {each >> 10} KiB, from one place to another of {ids * each >> 19} MiB"
    bound = session.limits.copy(nbytes, among=ids * _LAYOUT.page_bytes)
    beside = _memcpy(session, batches, ids, areas=1 if away == "device" else 2)
    # The plans hold the pools, which give their memory back when the match is dropped.
    return Match(session.ours(once), [beside], nbytes, bound, note)


def _memcpy(session: Session, batches: list[Array], ids: int, *, areas: int) -> Side | Absent:
    if session.provider.device_type not in ("cpu", "reference"):
        return Absent(MEMCPY, "the blocks do not lie in host memory")
    try:
        memcpy = BlockMemcpy()
    except UnavailableError as error:
        return Absent(MEMCPY, error.message)
    # Keys and values apart, as in a pool: twice the blocks, with ids of their own.
    memory = [np.ones((2 * ids, _LAYOUT.block_bytes), np.uint8) for _ in range(areas)]
    pairs = [tuple(np.concatenate([part, part + ids]) for part in batch) for batch in batches]
    calls = cycle(
        [(memory[i % areas], memory[(i + 1) % areas], *pairs[i]) for i in range(_BATCHES)]
    )

    def once() -> None:
        source, target, sources, targets = next(calls)
        memcpy(target, source, targets, sources)

    return Side(MEMCPY, repeated(once))


for _batch in (1, 8, 32, 128, 512):
    add(
        Row(
            f"block-ids-{_batch}",
            "kv cache",
            f"Allocate and free, per block, in batches of {_batch}",
            NANOSECONDS,
            partial(_block_ids, batch=_batch),
            (Target(POOL, ratio=5.0),) if _batch == 128 else (),
        )
    )
add(
    Row(
        "block-copy",
        "kv cache",
        "Copy random blocks within a pool, keys and values",
        GB_PER_S,
        partial(_copies, away="device"),
        (Target(MEMCPY, ratio=0.95),),
    )
)
add(
    Row(
        "block-swap",
        "kv cache",
        "Copy random blocks to a host pool and others back, in turns",
        GB_PER_S,
        partial(_copies, away="host"),
    )
)
