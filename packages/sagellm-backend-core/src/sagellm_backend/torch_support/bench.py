"""What torch itself offers for the rows of the benchmark: each function makes the call to time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

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


def linear(x: Tensor, weights: Sequence[Tensor]) -> Call:
    """``F.linear`` by each weight in turn."""
    each = cycle(weights)
    return lambda: functional.linear(x, next(each))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Call:
    """``torch.rms_norm``."""
    return lambda: torch.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Call:
    """A sum, and ``torch.rms_norm`` of it."""
    return lambda: torch.rms_norm(x + residual, weight.shape, weight, eps)


def silu_and_mul(x: Tensor) -> Call:
    """``F.silu`` of one half, times the other."""
    gate, up = x.chunk(2, -1)
    return lambda: functional.silu(gate) * up


def rope(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> Call:
    """As Llama is written in transformers: the halves swapped, times tables of cosines and sines."""
    angles = cos_sin.index_select(0, positions).unsqueeze(1).to(q.dtype)
    cos, sin = (torch.cat([half, half], -1) for half in angles.chunk(2, -1))

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    return lambda: (turned(q), turned(k))


def kv_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> Call:
    """``index_copy_`` into the slots."""
    keys, values = (cache.view(-1, *cache.shape[2:]) for cache in (key_cache, value_cache))
    return lambda: (keys.index_copy_(0, slots, key), values.index_copy_(0, slots, value))


def bare_matmul(a: Tensor, b: Tensor) -> Call:
    """``torch.matmul`` alone."""
    matmul = torch.matmul
    return lambda: matmul(a, b)


def bare_linear(x: Tensor, weight: Tensor) -> Call:
    """``F.linear`` alone."""
    product = functional.linear
    return lambda: product(x, weight)


def bare_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Call:
    """``torch.rms_norm`` alone."""
    norm, shape = torch.rms_norm, weight.shape
    return lambda: norm(x, shape, weight, eps)
