"""Operations by the vendor's operators: norms, SwiGLU, rope and writes into the KV cache.

What an operator does not take is computed in plain torch, by the kernel of the same name there.
Signatures are those of torch_npu 2.13. None of this has run on an NPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.dtypes import DType
from sagellm_backend.torch_support import device_kernels
from sagellm_backend.torch_support import kernels as plain
from sagellm_backend.torch_support.misuse import (
    FLOATING,
    MisuseError,
    bad_eps,
    check_rope,
    check_write,
    require_one_device,
)

_MODES = {"neox": "half", "gptj": "interleave"}
_MAX_ROTARY = 894  # "D < 896", and even
_MAX_HEADS = 999  # "B * N < 1000", with our B of 1


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    _check_norm(x, weight, eps)
    if not _is_matrix(x):
        return plain.rms_norm(x, weight, eps)
    y: Tensor = torch.ops.npu.npu_rms_norm(x, weight, epsilon=eps)[0]
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check_pair(x, residual, weight, eps)
    if not _is_matrix(x):
        return plain.add_rms_norm(x, residual, weight, eps)
    y, _, total = torch.ops.npu.npu_add_rms_norm(x, residual, weight, epsilon=eps)
    return y, total


def add_then_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``add_rms_norm`` for the 310P, which has the norm alone."""
    _check_pair(x, residual, weight, eps)
    total = x + residual
    return rms_norm(total, weight, eps), total


def silu_and_mul(x: Tensor) -> Tensor:
    _check_gate(x)
    if not x.numel():
        return plain.silu_and_mul(x)
    y: Tensor = torch.ops.npu.npu_swiglu(x, dim=-1)
    return y


def silu_and_mul_in_fp32(x: Tensor) -> Tensor:
    """``silu_and_mul`` for the 310P, whose SwiGLU takes fp32 alone."""
    return silu_and_mul(x.float()).to(x.dtype) if x.dtype in FLOATING else silu_and_mul(x)


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, style: str = "neox"
) -> tuple[Tensor, Tensor]:
    check_rope(q, k, positions, cos_sin, style)
    require_one_device("rope", q, k, positions, cos_sin)
    heads = max(q.shape[1], k.shape[1])
    if not q.shape[0] or rope_limits(rotary_dim=cos_sin.shape[1]) or heads > _MAX_HEADS:
        return plain.rope(q, k, positions, cos_sin, style=style)
    cos, sin = cos_sin.index_select(0, positions).chunk(2, -1)
    if style == "neox":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    else:
        cos, sin = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    cos, sin = cos[None, :, None], sin[None, :, None]
    return _rotate(q, cos, sin, style), _rotate(k, cos, sin, style)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, style: str) -> Tensor:
    """``x`` as (1, tokens, heads, size), in fp32: the angles may not be rounded to a half type."""
    size = cos.shape[-1]
    part = x[None, :, :, :size].float()
    turned = torch.ops.npu.npu_rotary_mul(part, cos, sin, rotary_mode=_MODES[style])[0].to(x.dtype)
    return torch.cat((turned, x[..., size:]), -1) if size < x.shape[-1] else turned


def kv_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    check_write(key, value, key_cache, value_cache, slots)
    require_one_device("kv_write", key, value, key_cache, value_cache, slots)
    if not (key_cache.is_contiguous() and value_cache.is_contiguous()):
        device_kernels.kv_write(key, value, key_cache, value_cache, slots)
    elif slots.numel() and key_cache.shape[0]:
        _scatter(key, value, key_cache, value_cache, slots)


def _scatter(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    """The operator takes no slot below 0: a token to be skipped repeats the write of one that is
    kept, or of what stands in slot 0 already. Which of equal writes comes last does not matter.
    """
    kept = slots >= 0
    donor = kept.to(torch.int32).argmax(0, keepdim=True)
    none_kept = ~kept.any()
    rows = torch.where(kept, torch.arange(slots.shape[0], device=slots.device), donor)
    safe = slots.index_select(0, rows).clamp(min=0).to(torch.int32)
    new = [
        torch.where(none_kept, cache[0, 0], array.index_select(0, rows))
        for array, cache in ((key, key_cache), (value, value_cache))
    ]
    torch.ops.npu.npu_scatter_pa_kv_cache(
        new[0], new[1], key_cache, value_cache, safe, cache_mode="Norm"
    )


def rope_limits(rotary_dim: int | None = None, **_: Any) -> list[str]:
    """Why the vendor's rope does not take these statics."""
    if rotary_dim is not None and rotary_dim > _MAX_ROTARY:
        return [f"npu_rotary_mul rotates up to {_MAX_ROTARY} dimensions, not {rotary_dim}"]
    return []


def no_limits(**_: Any) -> list[str]:
    """For operators that take all that their operation does."""
    return []


def half_limits(dtype: DType | None = None, **_: Any) -> list[str]:
    """For operators of the 310P that are served in fp16 only."""
    if dtype in (None, DType.FP16):
        return []
    return [f"the operator takes fp16, not {dtype.value}"]


def _is_matrix(x: Tensor) -> bool:
    """Norms take 2 to 8 dimensions, and something in them."""
    return 2 <= x.dim() <= 8 and x.numel() > 0


def _check_norm(x: Tensor, weight: Tensor, eps: float) -> None:
    if x.dtype is not weight.dtype or x.dtype not in FLOATING or bad_eps(eps):
        raise MisuseError
    if weight.dim() != 1 or not weight.numel() or x.shape[-1:] != weight.shape:
        raise MisuseError
    require_one_device("norm", x, weight)


def _check_pair(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    if x.shape != residual.shape or x.dtype is not residual.dtype:
        raise MisuseError
    _check_norm(x, weight, eps)
    require_one_device("norm", x, residual)


def _check_gate(x: Tensor) -> None:
    if x.dtype not in FLOATING or not x.dim() or x.shape[-1] % 2 or not x.shape[-1]:
        raise MisuseError


Offer = tuple[Callable[..., Any], Callable[..., list[str]]]
"""A kernel, and the reasons why it does not take some statics."""

KERNELS: dict[str, Offer] = {
    "rms_norm": (rms_norm, no_limits),
    "add_rms_norm": (add_rms_norm, no_limits),
    "silu_and_mul": (silu_and_mul, no_limits),
    "rope": (rope, rope_limits),
    "kv_write": (kv_write, no_limits),
}
"""For the families A2 and A3."""

KERNELS_310P: dict[str, Offer] = {
    "rms_norm": (rms_norm, half_limits),
    "add_rms_norm": (add_then_rms_norm, half_limits),
    "silu_and_mul": (silu_and_mul_in_fp32, no_limits),
}
