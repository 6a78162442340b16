"""vLLM's pool of block ids: take a batch and give it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from worker import serve


def warm(blocks: int, held: int, batch: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A pool of which ``held`` blocks are in use; without a prefix cache, its fastest way."""
    pool = BlockPool(num_gpu_blocks=blocks, enable_caching=False, hash_block_size=16)
    pool.get_new_blocks(held)

    def call() -> None:
        pool.free_blocks(pool.get_new_blocks(batch))

    return call, {}


if __name__ == "__main__":
    serve(warm)
