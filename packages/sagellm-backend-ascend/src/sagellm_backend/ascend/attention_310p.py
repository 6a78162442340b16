"""Attention by the operators of NNAL (``atb``), on the 310P.

There caches are read in the order FRACTAL_NZ, in which our pools cannot lie: the blocks of a step
are gathered into it at each call. Prefills of whole prompts go through ``_npu_flash_attention``,
decodes through ``_npu_paged_attention``; chunks of prompts run in plain torch. The shapes are those
that ATB documents and vllm-ascend passes on this chip. None of this has run on an NPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.ascend.linear import FRACTAL_NZ, TILE
from sagellm_backend.ascend.soc import BLOCK_SIZE
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.dtypes import DType
from sagellm_backend.torch_support import attention as plain
from sagellm_backend.torch_support import device_kernels, step
from sagellm_backend.torch_support.misuse import require_one_device

_MAX_DIM = 128
_MAX_BATCH = 2000


def has_nnal() -> bool:
    """Whether torch_npu has found NNAL and loaded its operators."""
    return hasattr(torch.ops.atb, "_npu_paged_attention")


def limits(
    dtype: DType | None = None,
    mode: str | None = None,
    head_dim: int | None = None,
    block_size: int | None = None,
    window: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
    **_: Any,
) -> list[str]:
    """Why the operators do not take these statics; those that are not known are no reason."""
    found = []
    if not has_nnal():
        found.append("NNAL is not set up (source its set_env.sh)")
    if dtype not in (None, DType.FP16):
        found.append(f"they take fp16, not {dtype.value}")
    if mode == "paged_prefill":
        found.append("they are not used for chunks of prompts")
    if window is not None:
        found.append("they have no windows")
    if softcap is not None:
        found.append("they have no softcap")
    if has_sinks:
        found.append("they have no sinks")
    if block_size not in (None, BLOCK_SIZE):
        found.append(f"they take blocks of {BLOCK_SIZE}, not {block_size}")
    if head_dim is not None and (head_dim % TILE or head_dim > _MAX_DIM):
        found.append(f"heads of {head_dim} are no multiple of {TILE} up to {_MAX_DIM}")
    return [f"atb: {reason}" for reason in found]


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
        metadata.block_size,
        window,
        softcap,
        sinks is not None,
    )
    if not unfit and metadata.mode == "paged_decode" and metadata.batch <= _MAX_BATCH:
        return _decode(q, k, v, metadata, scale)
    if not unfit and causal and _is_whole_prompts(metadata):
        return _prefill(q, k, v, metadata, scale)
    return device_kernels.attention(q, k, v, metadata, scale=scale, causal=causal, **options)


def _is_whole_prompts(metadata: AttentionMetadata) -> bool:
    ragged = metadata.mode == "ragged_prefill"
    return ragged and bool((metadata.query_lens == metadata.kv_lens).all())


def _decode(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, scale: float) -> Tensor:
    now = step.prepare(metadata, q.device)
    assert now.table is not None
    blocks = now.table.flatten()
    table = torch.arange(blocks.numel(), dtype=torch.int32, device=q.device).view(now.table.shape)
    out = q.new_empty(q.shape)  # empty_like with a format warns on NPUs
    arguments = {
        "query": q.contiguous(),
        "key_cache": _in_tiles(k, blocks),
        "value_cache": _in_tiles(v, blocks),
        "num_kv_heads": k.shape[2],
        "num_heads": q.shape[1],
        "scale_value": float(scale),
        "block_table": table,
        "context_lens": torch.from_numpy(metadata.kv_lens.copy()),  # which the host reads
        "out": out,
    }
    workspace = torch.ops.atb._npu_paged_attention_get_workspace(**arguments)  # noqa: SLF001
    torch.ops.atb._npu_paged_attention(**arguments, workspace=workspace)  # noqa: SLF001
    return out


def _in_tiles(cache: Tensor, blocks: Tensor) -> Tensor:
    """Blocks of a cache as (blocks, heads * size / 16, tokens, 16), in the format FRACTAL_NZ."""
    rows = cache.index_select(0, blocks).flatten(2)
    tiles = rows.view(*rows.shape[:2], -1, TILE).transpose(1, 2).contiguous()
    cast: Tensor = torch.ops.npu.npu_format_cast(tiles, FRACTAL_NZ)
    return cast


def _prefill(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata, scale: float) -> Tensor:
    out = torch.empty_like(_aligned(q))
    torch.ops.atb._npu_flash_attention(  # noqa: SLF001
        query=_aligned(q),
        key=_aligned(k),
        value=_aligned(v),
        mask=_mask(metadata.max_kv_len, metadata.batch, q.device),
        seq_len=torch.from_numpy(metadata.query_lens.copy()),
        scale_value=float(scale),
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        out=out,
    )
    return out[: q.shape[0]]


def _aligned(x: Tensor) -> Tensor:
    """``x`` with rows up to a multiple of 16."""
    return functional.pad(x, (0, 0, 0, 0, 0, -x.shape[0] % TILE)).contiguous()


def _mask(length: int, batch: int, device: torch.device) -> Tensor:
    """The causal mask, -inf where hidden, as (batch, size / 16, size, 16) in FRACTAL_NZ."""
    size = length + -length % TILE
    mask = torch.full((size, size), -torch.inf, dtype=torch.float16, device=device).triu(1)
    tiles = mask.view(1, size, size // TILE, TILE).transpose(1, 2)
    cast: Tensor = torch.ops.npu.npu_format_cast(
        tiles.repeat(batch, 1, 1, 1).contiguous(), FRACTAL_NZ
    )
    return cast
