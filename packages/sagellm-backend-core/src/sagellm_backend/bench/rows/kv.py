"""The KV cache: block ids, copies of blocks, swaps."""

from __future__ import annotations

from sagellm_backend.bench.row import NANOSECONDS, Match, Row, Target, add
from sagellm_backend.bench.session import Session
from sagellm_backend.kv import BlockAllocator

BATCH, BLOCKS = 128, 8192
POOL = "vLLM BlockPool"


def _ids(session: Session) -> Match:
    allocator = BlockAllocator(BLOCKS)
    held = allocator.alloc(BLOCKS // 2)
    del held  # half of the pool is in use, as in a server

    def once() -> None:
        allocator.free(allocator.alloc(BATCH))

    config = {"blocks": BLOCKS, "held": BLOCKS // 2, "batch": BATCH}
    pool = session.peer("vllm", POOL, "vllm_block_pool.py", config)
    return Match(session.ours(once), [pool], BATCH, note=f"{BLOCKS:,} blocks, half of them held")


add(
    Row(
        "block-ids",
        "kv cache",
        f"Allocate and free, per block, in batches of {BATCH}",
        NANOSECONDS,
        _ids,
        (Target(POOL, ratio=5.0),),
    )
)
