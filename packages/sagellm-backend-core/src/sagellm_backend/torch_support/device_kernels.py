"""Operations as devices with streams need them: nothing here waits for the device.

What the plain kernels find out by a look at values, they would stall a stream for, and could not be
captured in a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.torch_support import attention as plain
from sagellm_backend.torch_support import kernels, step
from sagellm_backend.torch_support.misuse import (
    check_write,
    require_one_device,
)

GATHERED = 1 << 28
"""Bytes of keys, and as many of values, that :func:`paged_decode` gathers at a time."""


def kv_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    check_write(key, value, key_cache, value_cache, slots)
    require_one_device("kv_write", key, value, key_cache, value_cache, slots)
    if not (slots.numel() and key_cache.shape[0]):
        return
    # Tokens to be skipped repeat the write of one that is kept, or what stands in slot 0 already:
    # which of equal writes comes last does not matter, and no shape depends on values. Each of the
    # following is a launch, so there are few.
    top, donor = slots.max(0, keepdim=True)
    kept = slots >= 0
    some_kept = top >= 0
    slots = torch.where(kept, slots, top).clamp(min=0).long()
    kept = kept.view(-1, 1, 1)
    place: tuple[Tensor, ...] = ()
    for new, cache in ((key, key_cache), (value, value_cache)):
        repeated = torch.where(some_kept, new.index_select(0, donor), cache[0, 0])
        rows = torch.where(kept, new, repeated)
        size = cache.shape[1]
        if cache.stride(0) == size * cache.stride(1):
            cache.view(-1, *cache.shape[2:]).index_put_((slots,), rows)
        else:
            place = place or (slots // size, slots % size)
            cache.index_put_(place, rows)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    options: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "sinks": sinks}
    if metadata.mode != "paged_decode":
        return plain.attention(q, k, v, metadata, causal=causal, **options)
    plain.check(q, k, v, metadata, causal=causal, **options)
    return paged_decode(q, k, v, step.prepare(metadata, q.device), **options)


def paged_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    now: step.Step,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None = None,
) -> Tensor:
    """One token of each sequence against its blocks, all of the table's width, the rest masked.

    Its launches depend on shapes alone, so a graph of it serves any lengths that the table holds.
    So many sequences are gathered at a time as :data:`GATHERED` has room for.
    """
    assert now.table is not None
    each = now.table.shape[1] * k[0].numel() * k.itemsize
    rows = max(1, GATHERED // each)
    parts = [
        _decode(*some, k, v, scale, window, softcap, sinks)
        for some in zip(q.split(rows), now.table.split(rows), now.kv_lens.split(rows), strict=True)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _decode(
    q: Tensor,
    table: Tensor,
    kv_lens: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    batch, heads, dim = q.shape
    size, kv_heads = k.shape[1:3]
    length = table.shape[1] * size
    blocks = table.flatten()
    position = torch.arange(length, device=q.device)
    lengths = kv_lens.unsqueeze(1)
    used = position < lengths
    # Free slots may hold NaN, which no mask stops: they are taken as 0.
    zeroed = used.view(batch, length, 1, 1)
    keys, values = (
        torch.where(
            zeroed, cache.index_select(0, blocks).view(batch, length, kv_heads, dim), 0
        ).transpose(1, 2)
        for cache in (k, v)
    )
    rows = q.reshape(batch, kv_heads, heads // kv_heads, dim)
    seen = used if window is None else used & (position > lengths - 1 - window)
    mask = seen.view(batch, 1, 1, length)
    if softcap is None and sinks is None and q.dtype is not torch.float32:
        out = functional.scaled_dot_product_attention(
            rows, keys, values, attn_mask=mask, scale=scale
        )
    else:
        # Fused kernels may approximate exp() with more than fp32's roundoff.
        logits = plain.cap(rows.float() @ keys.float().transpose(-1, -2) * scale, softcap)
        if sinks is not None:
            sinks = sinks.view(kv_heads, -1, 1)
        weights = plain.softmax(logits.masked_fill(~mask, -torch.inf), sinks)
        out = (weights @ values.float()).to(q.dtype)
    return out.reshape(batch, heads, dim)


KERNELS: dict[str, Callable[..., Any]] = {
    **kernels.KERNELS,
    "kv_write": kv_write,
    "attention": attention,
}
"""Every operation, for a device with streams."""
