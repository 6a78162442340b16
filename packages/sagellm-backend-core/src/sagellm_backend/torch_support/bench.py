"""What torch itself offers for the rows of the benchmark: each function makes the call to time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.attention import AttentionMetadata

Call = Callable[[], object]


def gather_sdpa(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, scale: float) -> Call:
    """Gather the blocks of each sequence, then torch's attention; all sequences of one length."""
    assert metadata.block_table is not None
    batch, query, context = metadata.batch, metadata.max_query_len, metadata.max_kv_len
    heads, width = q.shape[1:]
    kv_heads = k.shape[2]
    flat = torch.as_tensor(metadata.block_table.reshape(-1).copy(), device=q.device)
    place = torch.arange(query, device=q.device)[:, None] + (context - query)
    mask = torch.arange(context, device=q.device)[None, :] <= place

    def call() -> Tensor:
        keys, values = (
            cache.index_select(0, flat)
            .view(batch, -1, kv_heads, width)[:, :context]
            .transpose(1, 2)
            for cache in (k, v)
        )
        return functional.scaled_dot_product_attention(
            q.view(batch, query, heads, width).transpose(1, 2),
            keys,
            values,
            attn_mask=None if query == 1 else mask,
            scale=scale,
            enable_gqa=heads != kv_heads,
        )

    return call
