"""Small KV pools of the CPU, and all bytes that lie in them."""

from __future__ import annotations

import numpy as np
import torch

from sagellm_backend import DType, KVLayout

DTYPES = [DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8]
FORMS = [(order, packing) for order in ("NHD", "HND") for packing in ("separate", "packed")]
LAYERS, HEADS, SIZE, TOKENS, BLOCKS = 2, 3, 16, 4, 6


def layout_of(dtype=DType.BF16, order="NHD", packing="separate", **more):
    given = {"num_layers": LAYERS, "num_kv_heads": HEADS, "head_dim": SIZE, "block_size": TOKENS}
    return KVLayout(**{**given, "alignment": 64, **more}, dtype=dtype, order=order, packing=packing)


def held(backend):
    stats = backend.memory_stats()
    return stats["kv_bytes"], stats["allocated_bytes"], stats["reserved_bytes"]


def caches(pool):
    """Every cache of a pool: keys and values of each layer."""
    for layer in range(pool.layout.num_layers):
        yield pool.key_cache(layer)
        yield pool.value_cache(layer)


def contents(pool):
    """All bytes by (cache, block), in the logical order of the elements."""
    rows = [torch.stack([c[block] for block in range(pool.num_blocks)]) for c in caches(pool)]
    return torch.stack(rows).view(torch.uint8).flatten(2).numpy().copy()


def fill(pool, seed):
    """Random bytes, NaN of all kinds among them; returns the contents."""
    rng = np.random.default_rng(seed)
    for cache in caches(pool):
        raw = rng.integers(0, 256, (cache.numel() * cache.element_size(),), dtype=np.uint8)
        cache.copy_(torch.from_numpy(raw).view(cache.dtype).view(cache.shape))
    return contents(pool)


def pair(backend, dtype=DType.BF16, form=FORMS[0], blocks=(BLOCKS, BLOCKS), places=None):
    layout = layout_of(dtype, *form)
    places = places or ("device", "host")
    return [backend.kv_pool(layout, n, place) for n, place in zip(blocks, places, strict=True)]
