"""Kernels: kv_write into the caches of a real pool, of every order and packing."""

from __future__ import annotations

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pools import (
    Array,
    caches,
    computed_kv_dtypes,
    layout_of,
    orders,
    packings,
    write,
)
from sagellm_backend.kv import KVPool

_PARAMS = {"dtype": computed_kv_dtypes("kv_write"), "order": orders, "packing": packings}


@case("kernels", requires=(Feature.KV_POOL,), params=_PARAMS)
def kv_write_into_a_pool(exam: Exam) -> None:
    """Tokens arrive in their slots of a strided cache, and no other byte of the pool changes.

    Kills a kernel that takes the cache for contiguous, that writes the slot -1, or that crosses
    from keys to values or from layer to layer.
    """
    layout = layout_of(exam)
    pool = exam.provider.kv_pool(layout, 5)
    wanted = [_fill(exam, pool, layer) for layer in range(layout.num_layers)]
    tokens = 11
    slots = exam.rng.permutation(5 * layout.block_size)[:tokens]
    slots[[2, 7]] = -1
    shape = (tokens, layout.num_kv_heads, layout.head_dim)
    keys, values = (exam.fill(shape, layout.dtype) for _ in range(2))
    write(exam, pool, 1, keys, values, slots)
    kept = slots >= 0
    block, offset = np.divmod(slots[kept], layout.block_size)
    wanted[1][0][block, offset], wanted[1][1][block, offset] = keys[kept], values[kept]
    for layer in range(layout.num_layers):
        found = caches(exam, pool, layer)
        for words, got, right in zip(("keys", "values"), found, wanted[layer], strict=True):
            exam.equal_bits(got, right, f"{words} of layer {layer}")


def _fill(exam: Exam, pool: KVPool, layer: int) -> tuple[Array, Array]:
    """Write every slot of a layer once; what it then holds."""
    layout = pool.layout
    slots = exam.rng.permutation(pool.num_blocks * layout.block_size)
    shape = (len(slots), layout.num_kv_heads, layout.head_dim)
    keys, values = (exam.fill(shape, layout.dtype) for _ in range(2))
    write(exam, pool, layer, keys, values, slots)
    logical = (pool.num_blocks, layout.block_size, *shape[1:])
    back = np.argsort(slots)
    return keys[back].reshape(logical), values[back].reshape(logical)
