"""The choices of the cuda backend that were made without a card, measured on one.

    python benchmarks/cuda_choices.py            # where SAGELLM_CUDA_KERNELS=flashinfer is set, too

One line for each: the best time of a way, its bytes a second, and its share of one large copy of
the same kind in the same run. KV blocks are copied between host and card by batches of the driver
and by torch, scattered and in runs; a decode step reads its blocks by each kernel that takes it.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sagellm_backend import DType, KVLayout
from sagellm_backend.cuda.kv import CUDAKVCopyPlan
from sagellm_backend.cuda.provider import CUDAProvider
from sagellm_backend.errors import BackendError

LAYERS, KV_HEADS, HEADS, DIM, BLOCK = 32, 8, 32, 128, 16
LARGE = 1 << 28


def best(call: Callable[[], object], seconds: float) -> float:
    """The best time of a call, which waits for its work."""
    call()
    found, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        call()
        found = min(found, time.perf_counter() - began)
    return found


def line(what: str, seconds: float, nbytes: int, large: float) -> None:
    """Show one result."""
    speed = nbytes / seconds
    print(f"{what:<58} {seconds * 1e6:>10.1f} us {speed / 1e9:>8.2f} GB/s {speed / large:>6.2f}")


def large_copy(backend: CUDAProvider, source: str, target: str, seconds: float) -> float:
    """Bytes a second of one copy of :data:`LARGE` bytes, read once and written once."""
    arrays = [backend.empty((LARGE,), DType.INT8, place) for place in (source, target)]

    def copy() -> None:
        arrays[1].copy_(arrays[0], non_blocking=True)
        backend.synchronize()

    return LARGE / best(copy, seconds)


def copies(backend: CUDAProvider, blocks: int, seconds: float) -> None:
    """Swaps by each way, and copies on the card."""
    layout = KVLayout(LAYERS, KV_HEADS, DIM, BLOCK, DType.BF16)
    pools = {place: backend.kv_pool(layout, blocks) for place in ("device", "other")}
    pools["host"] = backend.kv_pool(layout, blocks, "host")
    for pool in pools.values():
        pool.alloc(blocks)
    stream, rng = backend.create_stream(), np.random.default_rng(0)
    shuffled = rng.permutation(blocks)
    for source, target in (("device", "host"), ("host", "device"), ("device", "other")):
        large = large_copy(backend, source, target.replace("other", "device"), seconds)
        ways: dict[str, Any] = {"torch": None}
        if "host" in (source, target) and backend._batches is not None:  # noqa: SLF001
            ways["batches"] = backend._batches  # noqa: SLF001
        for count in (1, 8, 64, blocks):
            for form, ids in (("run", np.arange(count)), ("scattered", shuffled[:count])):
                for way, batches in ways.items():
                    plan = CUDAKVCopyPlan(pools[source], pools[target], backend.module, batches)

                    def swap(plan: CUDAKVCopyPlan = plan, ids: Any = ids) -> None:
                        plan.copy(ids, ids, stream)
                        stream.synchronize()

                    elapsed = best(swap, seconds)
                    what = f"copy {source}-to-{target} {count} blocks {form} {way}"
                    line(what, elapsed, count * layout.page_bytes, large)


def decodes(backend: CUDAProvider, batch: int, context: int, size: int, seconds: float) -> None:
    """One step of paged decode by each kernel that takes it."""
    pages = -(-context // size)
    layout = KVLayout(1, KV_HEADS, DIM, size, DType.BF16)
    pool = backend.kv_pool(layout, batch * pages)
    pool.key_cache(0).zero_()
    pool.value_cache(0).zero_()
    table = np.random.default_rng(0).permutation(batch * pages).reshape(batch, pages)
    metadata = backend.attention_metadata([1] * batch, [context] * batch, table, size)
    q = backend.from_numpy(np.ones((batch, HEADS, DIM), np.float32).astype(DType.BF16.numpy))
    large = 2 * large_copy(backend, "device", "device", seconds)
    statics = {"dtype": DType.BF16, "head_dim": DIM, "block_size": size, "mode": metadata.mode}
    for item in backend.kernels._implementations["attention"]:  # noqa: SLF001 - each of them
        if item.reasons(statics):
            continue
        caches = pool.key_cache(0), pool.value_cache(0)

        def step(kernel: Callable[..., Any] = item.fn, caches: Any = caches) -> None:
            kernel(q, *caches, metadata, scale=DIM**-0.5)
            backend.synchronize()

        nbytes = 2 * batch * context * KV_HEADS * DIM * 2
        what = f"decode {batch}x{context}, blocks of {size}, {item.name}"
        line(what, best(step, seconds), nbytes, large)


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line")
    parser.add_argument("--blocks", type=int, default=512)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--factory", default="sagellm_backend.cuda.provider:create_cuda_backend")
    chosen = parser.parse_args()
    module, _, name = chosen.factory.partition(":")
    try:
        backend = getattr(importlib.import_module(module), name)()
    except BackendError as error:
        raise SystemExit(f"There is nothing to measure: {error}") from error
    print(f"{backend.capability().device_name}, torch {torch.__version__}")
    copies(backend, chosen.blocks, chosen.seconds)
    for size in (BLOCK, 256):
        decodes(backend, chosen.batch, chosen.context, size, chosen.seconds)


if __name__ == "__main__":
    main()
