"""Rotary positions by a compiled kernel, in one pass over queries and keys."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import kernels_of, on_host
from sagellm_backend.torch_support import kernels
from sagellm_backend.torch_support.misuse import INDEX

_KERNELS = kernels_of("rope")
_CHUNK, _FAILED = 1 << 14, 19
_words, _packed = (ctypes.c_int64 * 20).from_buffer_copy, struct.Struct("20q").pack
_FP32, _INT64 = torch.float32, torch.int64


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, style: str = "neox"
) -> tuple[Tensor, Tensor]:
    """See the operation's table. A position outside of the table is refused."""
    try:
        turned = _compiled(q, k, positions, cos_sin, style)
    except RuntimeError:
        turned = None  # a tensor without strides, or of torch.func, which has no memory of its own
    return kernels.rope(q, k, positions, cos_sin, style=style) if turned is None else turned


def _compiled(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, style: str
) -> tuple[Tensor, Tensor] | None:
    """The rotated pair; ``None`` for what the kernel does not take, and for all misuse."""
    dtype = q.dtype
    kernel = _KERNELS.get(dtype)
    if kernel is None or k.dtype is not dtype or cos_sin.dtype is not _FP32:
        return None
    if not on_host(q, k, positions, cos_sin) or not cos_sin.is_contiguous():
        return None
    # What has other dimensions does not unpack, which is a ValueError as all misuse is.
    tokens, heads, size = q.shape
    others, kv_heads, width = k.shape
    limit, rotary = cos_sin.shape
    if others != tokens or width != size or positions.shape != (tokens,):
        return None
    if rotary > size or rotary % 2 or not (heads and kv_heads and limit and rotary):
        return None
    near = style == "gptj"
    q_token, q_head, q_element = q.stride()
    k_token, k_head, k_element = k.stride()
    if not q_element == k_element == 1 or not (near or style == "neox"):
        return None
    if positions.dtype is not _INT64 or not positions.is_contiguous():
        if positions.dtype not in INDEX:
            return None
        positions = positions.long().contiguous()
    function = kernel.function()
    if function is None:
        return None
    turned_q, turned_k = q.new_empty(tokens, heads, size), k.new_empty(tokens, kv_heads, size)
    chunk = _CHUNK // ((heads + kv_heads) * size) or 1
    # fmt: off
    words = _words(_packed(
        0,
        q.data_ptr(), q_token, q_head, heads, turned_q.data_ptr(),
        k.data_ptr(), k_token, k_head, kv_heads, turned_k.data_ptr(),
        positions.data_ptr(), cos_sin.data_ptr(), limit, rotary, size,
        tokens, chunk, near, 0,
    ))
    # fmt: on
    team.run(function, words, -(-tokens // chunk))
    return None if words[_FAILED] else (turned_q, turned_k)
