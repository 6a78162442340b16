"""Attention by torch's flash kernels (``torch.nn.attention.varlen``), over packed or paged keys.

What they do not take goes to the kernels that all torch devices share. Rules are those of torch
2.13: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp for the built-in FA2, its tests
for FA3 and FA4, which a user activates by ``torch.nn.attention.activate_flash_attention_impl``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.dtypes import DType
from sagellm_backend.torch_support import attention as plain
from sagellm_backend.torch_support import device_kernels, step
from sagellm_backend.torch_support.misuse import MisuseError, require_one_device

PAGES = 256
"""A block of a paged cache must have a multiple of this many tokens for FA2."""

SMALL_PAGES = (32, 64, 128, 256)
"""The block sizes that FA3 and FA4 take."""

MAX_HEAD_DIM = 256
LEAST_CAPABILITY = (8, 0)

_HALF = (torch.float16, torch.bfloat16)


def _find() -> tuple[Callable[..., Any] | None, Callable[[], str | None]]:
    """``varlen_attn`` of torch where it knows block tables (2.12 and later), and the impl in use."""
    try:
        from torch.nn.attention import current_flash_attention_impl
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, lambda: None
    known = inspect.signature(varlen_attn).parameters
    return (varlen_attn if "block_table" in known else None), current_flash_attention_impl


_varlen_attn, _active = _find()


def shortfalls(
    capability: tuple[int, int],
    dtype: DType | None = None,
    head_dim: int | None = None,
    block_size: int | None = None,
    softcap: float | None = None,
    has_sinks: bool = False,
    **_: Any,
) -> list[str]:
    """Why flash attention does not serve these statics on a card of this compute capability."""
    found = []
    if _varlen_attn is None:
        found.append(f"torch {torch.__version__} has no paged varlen_attn; 2.12 has")
    if capability < LEAST_CAPABILITY:
        had, needed = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
        found.append(f"it needs compute capability {needed}, the card has {had}")
    if dtype is not None and dtype not in {DType.FP16, DType.BF16}:
        found.append(f"it computes in fp16 and bf16, not {dtype.value}")
    if head_dim is not None and (head_dim > MAX_HEAD_DIM or head_dim % 8):
        found.append(f"head_dim {head_dim} is no multiple of 8 up to {MAX_HEAD_DIM}")
    if block_size is not None and not _takes_pages(block_size, capability):
        found.append(f"blocks of {block_size} tokens are no multiple of {PAGES}")
    if softcap is not None:
        found.append("it has no softcap")
    if has_sinks:
        found.append("it has no sinks")
    return found


def make(capability: tuple[int, int]) -> Callable[..., Tensor]:
    """The kernel for a card of this compute capability."""

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
        if q.is_cpu:
            raise MisuseError
        options: dict[str, Any] = {"causal": causal, "window": window, "softcap": softcap}
        if sinks is not None or not _fits(q, k, v, metadata, softcap, capability):
            return device_kernels.attention(q, k, v, metadata, scale=scale, sinks=sinks, **options)
        plain.check(q, k, v, metadata, scale=scale, **options)
        require_one_device("attention", q, k, v)  # the kernels do not look
        return _flash(q, k, v, metadata, scale, causal, window)

    return attention


def _fits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    metadata: AttentionMetadata,
    softcap: float | None,
    capability: tuple[int, int],
) -> bool:
    dim = q.shape[-1]
    if softcap is not None or q.dtype not in _HALF:
        return False
    if dim % 8 or dim > MAX_HEAD_DIM or k.stride(-1) != 1 or v.stride(-1) != 1:
        return False
    return metadata.block_size is None or _takes_pages(metadata.block_size, capability)


def _takes_pages(size: int, capability: tuple[int, int]) -> bool:
    impl = _active()
    if impl is None:
        return size % PAGES == 0
    return size in SMALL_PAGES and (impl != "FA4" or capability[0] == 10)


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    metadata: AttentionMetadata,
    scale: float,
    causal: bool,
    window: int | None,
) -> Tensor:
    assert _varlen_attn is not None
    now = step.prepare(metadata, q.device)
    paged = now.table is not None
    one = metadata.max_query_len == 1
    # FA2 asks for cumulative lengths of paged keys too, FA3 and FA4 refuse them.
    ends = now.cu_kv if not paged or _active() is None else None
    longest = metadata.max_kv_len
    if now.table is not None and metadata.block_size is not None:
        longest = now.table.shape[1] * metadata.block_size  # a graph of it serves all that fit
    # A single query sees every key as it is: said so, the heads of a group share a tile.
    right = 0 if causal and not one else -1
    out: Tensor = _varlen_attn(
        q if q.stride(-1) == 1 else q.contiguous(),
        k,
        v,
        now.cu_query,
        ends,
        metadata.max_query_len,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, right),
        enable_gqa=q.shape[1] != k.shape[-2],
        seqused_k=now.kv_lens if paged else None,
        block_table=now.table,
        num_splits=1,  # the same bits whatever else is in the batch
    )
    return out
