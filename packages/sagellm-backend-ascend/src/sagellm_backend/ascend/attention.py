"""Attention by the vendor's fused operator, on the families A2 and A3.

Decodes go through ``npu_fused_infer_attention_score`` as (batch, 1, heads, size); steps with more
than one token per sequence through its second version as (tokens, heads, size). The limits are
those that torch_npu 2.13 documents. None of this has run on an NPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.ascend import graphs
from sagellm_backend.ascend.lengths import Lengths, lengths_of
from sagellm_backend.ascend.soc import BLOCK_SIZE
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.dtypes import DType
from sagellm_backend.torch_support import attention as plain
from sagellm_backend.torch_support import device_kernels, step
from sagellm_backend.torch_support.misuse import require_one_device

_HALF = (DType.FP16, DType.BF16)
_PREFILL_DIM = 128
_MAX_GROUP = 64
_MAX_ROW = 65535  # kv heads * size, of one token in a cache
_MAX_ELEMENTS = 2**31 - 1  # of one cache
_MASK = 2048
_NO_MASK, _RIGHT_DOWN_CAUSAL = 0, 3  # values of sparse_mode


def limits(
    dtype: DType | None = None,
    mode: str | None = None,
    head_dim: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    block_size: int | None = None,
    window: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
    **_: Any,
) -> list[str]:
    """Why the operator does not take these statics; those that are not known are no reason."""
    found = []
    if dtype not in (None, *_HALF):
        found.append(f"it takes fp16 and bf16, not {dtype.value}")
    if window is not None:
        found.append("it is not used for windows")
    if softcap is not None:
        found.append("it has no softcap")
    if has_sinks:
        found.append("it is not used for sinks")
    if block_size not in (None, BLOCK_SIZE):
        found.append(f"it takes blocks of {BLOCK_SIZE}, not {block_size}")
    if head_dim is not None and mode == "paged_decode" and (head_dim % 16 or head_dim > 512):
        found.append(f"heads of {head_dim} are no multiple of 16 up to 512")
    if head_dim is not None and mode not in (None, "paged_decode") and head_dim != _PREFILL_DIM:
        found.append(f"prefill takes heads of {_PREFILL_DIM}, not {head_dim}")
    if num_heads and num_kv_heads and num_heads > _MAX_GROUP * num_kv_heads:
        found.append(f"it takes up to {_MAX_GROUP} query heads for one of keys")
    if head_dim and num_kv_heads and head_dim * num_kv_heads > _MAX_ROW:
        found.append(f"a token's keys have more than {_MAX_ROW} elements")
    return [f"npu_fused_infer_attention_score: {reason}" for reason in found]


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
    options: dict[str, Any] = {"window": window, "softcap": softcap, "sinks": sinks}
    plain.check(q, k, v, metadata, scale=scale, causal=causal, **options)
    require_one_device("attention", q, k, v)
    unfit = limits(
        DType.parse(q.dtype),
        metadata.mode,
        q.shape[2],
        q.shape[1],
        k.shape[-2],
        metadata.block_size,
        window,
        softcap,
        sinks is not None,
    )
    if unfit or not _are_readable(k, v, metadata):
        return device_kernels.attention(q, k, v, metadata, scale=scale, causal=causal, **options)
    if metadata.mode == "paged_decode":
        return _decode(q, k, v, metadata, scale)
    return _prefill(q, k, v, metadata, scale, causal=causal)


def _are_readable(k: Tensor, v: Tensor, metadata: AttentionMetadata) -> bool:
    """Whether keys and values lie as the operator reads them."""
    if metadata.block_table is None:
        return True
    if not (k.is_contiguous() and v.is_contiguous()) or k.numel() > _MAX_ELEMENTS:
        return False
    return lengths_of(metadata).blocks <= k.shape[0]  # which the operator asks for


def _decode(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, scale: float) -> Tensor:
    call: dict[str, Any] = {
        "query": q.unsqueeze(1).contiguous(),
        "key": k.flatten(2),
        "value": v.flatten(2),
        "block_table": step.prepare(metadata, q.device).table,
        "num_heads": q.shape[1],
        "num_key_value_heads": k.shape[2],
        "scale": float(scale),
        "input_layout": "BSND",
        "block_size": BLOCK_SIZE,
    }
    graph = graphs.recording()
    if graph is not None:
        return _capture_decode(graph, call, metadata).view(q.shape)
    out, _ = torch.ops.npu.npu_fused_infer_attention_score(
        **call, actual_seq_lengths_kv=lengths_of(metadata).kv
    )
    result: Tensor = out.view(q.shape)
    return result


def _capture_decode(
    graph: graphs.Tasks, call: dict[str, Any], metadata: AttentionMetadata
) -> Tensor:
    """The call with results and a workspace of its own, which it keeps whatever its lengths."""
    query, key = call["query"], call["key"]
    kind = query.dtype, query.shape, key.shape, call["num_key_value_heads"]
    space = graph.workspaces.get(kind)
    if space is None:
        space = torch.ops.npu._npu_fused_infer_attention_score_get_max_workspace(  # noqa: SLF001
            **call, actual_seq_lengths_kv=lengths_of(metadata).kv
        )
        graph.workspaces[kind] = space
    out = [torch.empty_like(query), torch.empty(1, dtype=query.dtype, device=query.device)]

    def launch(lengths: Lengths) -> None:
        torch.ops.npu.npu_fused_infer_attention_score.out(
            **call, actual_seq_lengths_kv=lengths.kv, workspace=space, out=out
        )

    graph.capture(launch, metadata, key.shape[0])
    return out[0]


def _prefill(
    q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, scale: float, *, causal: bool
) -> Tensor:
    lengths, paged = lengths_of(metadata), metadata.block_table is not None
    out, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
        q.contiguous(),
        k.flatten(2) if paged else k.contiguous(),
        v.flatten(2) if paged else v.contiguous(),
        atten_mask=_upper_triangle(q.device) if causal else None,
        actual_seq_qlen=lengths.cu_query,
        actual_seq_kvlen=lengths.kv if paged else lengths.cu_kv,
        block_table=step.prepare(metadata, q.device).table,
        num_query_heads=q.shape[1],
        num_key_value_heads=k.shape[-2],
        softmax_scale=float(scale),
        input_layout="TND",
        sparse_mode=_RIGHT_DOWN_CAUSAL if causal else _NO_MASK,
        block_size=BLOCK_SIZE if paged else 0,
    )
    result: Tensor = out
    return result


@cache
def _upper_triangle(device: torch.device) -> Tensor:
    """The mask that sparse_mode 3 wants, whatever the lengths: true is hidden."""
    return torch.ones(_MASK, _MASK, dtype=torch.bool, device=device).triu(1)
