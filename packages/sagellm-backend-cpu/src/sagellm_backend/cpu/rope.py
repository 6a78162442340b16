"""Rotary positions by a compiled kernel, in one pass over queries and keys."""

from __future__ import annotations

import ctypes

from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import addressable, kernels_of
from sagellm_backend.torch_support import kernels
from sagellm_backend.torch_support.misuse import check_rope

_KERNELS = kernels_of("rope")
_CHUNK, _FAILED = 1 << 14, 19
_Words = ctypes.c_int64 * 20


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, style: str = "neox"
) -> tuple[Tensor, Tensor]:
    check_rope(q, k, positions, cos_sin, style)
    turned = _compiled(q, k, positions, cos_sin, style == "gptj")
    if turned is not None:
        return turned
    return kernels.rope(q, k, positions, cos_sin, style=style)


def _compiled(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, near: bool
) -> tuple[Tensor, Tensor] | None:
    """The rotated pair; ``None`` where the kernel does not take these, or a position is wrong."""
    function = _KERNELS[q.dtype].function()
    if function is None or not addressable(q, k, positions, cos_sin):
        return None
    tokens, heads, size = q.shape
    if q.stride(2) != 1 or k.stride(2) != 1 or not cos_sin.is_contiguous():
        return None
    places = positions.long().contiguous()
    kv_heads, (limit, rotary) = k.shape[1], cos_sin.shape
    turned_q, turned_k = q.new_empty(q.shape), k.new_empty(k.shape)
    chunk = max(1, _CHUNK // ((heads + kv_heads) * size))
    try:
        words = _Words(
            0,
            *(q.data_ptr(), q.stride(0), q.stride(1), heads, turned_q.data_ptr()),
            *(k.data_ptr(), k.stride(0), k.stride(1), kv_heads, turned_k.data_ptr()),
            *(places.data_ptr(), cos_sin.data_ptr(), limit, rotary, size),
            *(tokens, chunk, near, 0),
        )
    except RuntimeError:
        return None  # a tensor of torch.func, which has no memory of its own
    team.run(function, words, -(-tokens // chunk))
    return None if words[_FAILED] else (turned_q, turned_k)
