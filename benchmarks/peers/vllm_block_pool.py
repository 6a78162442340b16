"""vLLM's pool of block ids: take batches and give them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from worker import serve


def warm(blocks: int, batch: int, rounds: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call that holds so many batches; without a prefix cache, the pool's fastest way."""
    pool = BlockPool(num_gpu_blocks=blocks, enable_caching=False, hash_block_size=16)

    def call() -> None:
        held = [pool.get_new_blocks(batch) for _ in range(rounds)]
        for each in held:
            pool.free_blocks(each)

    return call, {}


if __name__ == "__main__":
    serve(warm)
