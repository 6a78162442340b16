"""Attention in plain torch: gather the blocks of a sequence, then scaled-dot-product attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.ops.statics import boolean, positive_int, positive_real
from sagellm_backend.torch_support.memory import to_device
from sagellm_backend.torch_support.misuse import FLOATING, MisuseError

BLOCKS = "torch.block_table"
"""Where a metadata's ``native`` keeps its blocks: one int64 tensor for each sequence."""


def prepare(metadata: AttentionMetadata, device: torch.device) -> None:
    """Put on the device what :func:`attention` reads of the metadata."""
    if metadata.block_table is None:
        return
    table = to_device(torch.from_numpy(metadata.block_table.astype(np.int64)), device)
    counts = -(-metadata.kv_lens // metadata.block_size)
    metadata.native[BLOCKS] = [
        row[:count] for row, count in zip(table, counts.tolist(), strict=True)
    ]


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
    options: dict[str, Any] = {"causal": causal, "window": window}
    check(q, k, v, metadata, scale=scale, softcap=softcap, sinks=sinks, **options)
    if metadata.block_table is not None and BLOCKS not in metadata.native:
        prepare(metadata, q.device)
    out = q.new_empty(q.shape)  # empty_like with a format warns on NPUs
    for sequence in range(metadata.batch):
        first, last = int(metadata.cu_query[sequence]), int(metadata.cu_query[sequence + 1])
        keys, values = _keys_of(sequence, k, v, metadata)
        mask = _mask(last - first, keys.shape[0], causal, window, q.device)
        out[first:last] = _attend(q[first:last], keys, values, mask, scale, softcap, sinks)
    return out


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    metadata: AttentionMetadata,
    *,
    sinks: Tensor | None = None,
    **options: Any,
) -> None:
    """Raise :class:`MisuseError` for arguments that :func:`attention` does not take."""
    _check_arrays(q, k, v, metadata)
    _check_options(**options)
    if sinks is None:
        return
    if sinks.shape != q.shape[1:2] or sinks.dtype is not torch.float32 or sinks.device != q.device:
        raise MisuseError


def _check_arrays(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> None:
    paged = metadata.block_table is not None
    if q.dim() != 3 or k.dim() != 3 + paged or k.shape != v.shape:
        raise MisuseError
    if q.shape[0] != metadata.cu_query[-1] or q.shape[-1] != k.shape[-1]:
        raise MisuseError
    if q.shape[1] % k.shape[-2] or 0 in q.shape[1:]:
        raise MisuseError
    if not (q.dtype is k.dtype is v.dtype and q.dtype in FLOATING):
        raise MisuseError
    if not paged:
        if k.shape[0] != metadata.cu_kv[-1]:
            raise MisuseError
        return
    if k.shape[1] != metadata.block_size:
        raise MisuseError
    metadata.check_blocks(k.shape[0])


def _check_options(scale: Any, causal: Any, window: Any, softcap: Any) -> None:
    if positive_real(scale) or boolean(causal):
        raise MisuseError
    if window is not None and positive_int(window):
        raise MisuseError
    if softcap is not None and positive_real(softcap):
        raise MisuseError


def _keys_of(
    sequence: int, k: Tensor, v: Tensor, metadata: AttentionMetadata
) -> tuple[Tensor, Tensor]:
    """Keys and values of one sequence: (kv_len, kv_heads, head_dim) each."""
    if metadata.block_table is None:
        first, last = int(metadata.cu_kv[sequence]), int(metadata.cu_kv[sequence + 1])
        return k[first:last], v[first:last]
    blocks = metadata.native[BLOCKS][sequence]
    length = int(metadata.kv_lens[sequence])
    # Only what is in use is touched: free blocks and slots may hold NaN.
    keys = k.index_select(0, blocks).flatten(0, 1)[:length]
    return keys, v.index_select(0, blocks).flatten(0, 1)[:length]


def _mask(
    queries: int, keys: int, causal: bool, window: int | None, device: torch.device
) -> Tensor | None:
    """Which key each query may see, or ``None`` for all."""
    if queries == 1 and (window is None or window >= keys):
        return None
    key = torch.arange(keys, device=device)
    query = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    seen = key <= query if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    return seen if window is None else seen & (key > query - window)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """One sequence: q (queries, heads, dim) against k and v (keys, kv_heads, dim)."""
    queries, heads, dim = q.shape
    kv_heads = k.shape[1]
    keys, values = k.transpose(0, 1), v.transpose(0, 1)
    if queries == 1:
        # The heads of a group are rows against one key head: no copy of the keys is made.
        rows = q.reshape(kv_heads, heads // kv_heads, dim)
    else:
        rows = q.transpose(0, 1)
    if softcap is not None or sinks is not None:
        out = _attend_stepwise(rows, keys, values, mask, scale, softcap, sinks)
    else:
        out = functional.scaled_dot_product_attention(
            rows.unsqueeze(0),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            attn_mask=mask,
            scale=scale,
            enable_gqa=queries > 1 and heads != kv_heads,
        ).squeeze(0)
    return out.reshape(1, heads, dim) if queries == 1 else out.transpose(0, 1)


def _attend_stepwise(
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    groups = rows.shape[0] // keys.shape[0]
    keys = keys.float().repeat_interleave(groups, 0)
    values = values.float().repeat_interleave(groups, 0)
    logits = cap(rows.float() @ keys.transpose(1, 2) * scale, softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        sinks = sinks.view(rows.shape[0], -1, 1)
    return (softmax(logits, sinks) @ values).to(rows.dtype)


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """``softcap * tanh(logits / softcap)``; as they are without a softcap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Weights over the last axis; ``sinks``, which broadcast to a column, take a share of them."""
    if sinks is None:
        return logits.softmax(-1)
    column = sinks.expand(*logits.shape[:-1], 1)
    return torch.cat((logits, column), -1).softmax(-1)[..., :-1]
