"""The operations in plain torch, for any device that torch can compute on.

torch refuses most misuse by itself. What it would accept in silence, by broadcasting or by
promoting a dtype, is refused here by :class:`MisuseError`; dispatch turns that into our error, with the
reason that the operation table finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.torch_support import quantised
from sagellm_backend.torch_support.attention import attention
from sagellm_backend.torch_support.misuse import (
    FLOATING,
    MisuseError,
    bad_eps,
    check_rope,
    check_write,
)
from sagellm_backend.torch_support.sampling import greedy_sample, sample

# Found once: every call would otherwise look them up, and pass a wrapper on the way.
_linear, _matmul, _rms_norm = functional.linear, torch.matmul, torch.rms_norm


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    if table.dtype not in FLOATING or not table.numel():
        raise MisuseError
    return functional.embedding(ids, table)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dim() != 2 or not weight.numel() or weight.dtype not in FLOATING:
        raise MisuseError
    if x.dtype is not weight.dtype:  # which a device may find out when the call is over
        raise MisuseError
    if bias is not None:
        if bias.shape != weight.shape[:1] or bias.dtype is not weight.dtype:
            raise MisuseError
        x = x.contiguous()  # to strided rows torch adds the bias after rounding their product
    return _linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    dims, dtype = a.dim(), a.dtype
    if dims < 2 or dims != b.dim() or dtype is not b.dtype or dtype not in FLOATING:
        raise MisuseError
    if dims > 2 and a.shape[:-2] != b.shape[:-2]:
        raise MisuseError
    if not b.numel() and 0 in b.shape[-2:]:
        raise MisuseError
    return _matmul(a, b)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype is not weight.dtype or x.dtype not in FLOATING or bad_eps(eps):
        raise MisuseError
    if weight.dim() != 1 or not weight.numel():
        raise MisuseError
    return _rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.shape != residual.shape or x.dtype is not residual.dtype:
        raise MisuseError
    total = x + residual
    return rms_norm(total, weight, eps), total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if not (x.dtype is weight.dtype is bias.dtype and x.dtype in FLOATING) or bad_eps(eps):
        raise MisuseError
    if weight.dim() != 1 or not weight.numel():
        raise MisuseError
    return functional.layer_norm(x, weight.shape, weight, bias, eps)


def silu_and_mul(x: Tensor) -> Tensor:
    size = x.shape[-1]
    if size % 2 or not size or x.dtype not in FLOATING:
        raise MisuseError
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    if x.dtype not in FLOATING:
        raise MisuseError
    return functional.gelu(x, approximate=approximate)


def softmax(x: Tensor) -> Tensor:
    if not x.shape[-1] or x.dtype not in FLOATING:
        raise MisuseError
    return functional.softmax(x, -1)


def rope(
    q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, style: str = "neox"
) -> tuple[Tensor, Tensor]:
    check_rope(q, k, positions, cos_sin, style)
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, -1)
    return _rotate(q, cos, sin, style), _rotate(k, cos, sin, style)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, style: str) -> Tensor:
    size = 2 * cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    if style == "neox":
        first, second = turned.chunk(2, -1)
    else:
        first, second = turned[..., ::2], turned[..., 1::2]
    # cos and sin are fp32, so half types are promoted here and rounded once below.
    pair = (first * cos - second * sin, second * cos + first * sin)
    if style == "neox":
        out = torch.cat(pair, -1)
    else:
        out = torch.stack(pair, -1).flatten(-2)
    out = out.to(x.dtype)
    return torch.cat((out, rest), -1) if rest.shape[-1] else out


def kv_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    check_write(key, value, key_cache, value_cache, slots)
    _write_slots(key, value, key_cache, value_cache, slots.long())


def _write_slots(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    block_size = key_cache.shape[1]
    if slots.device.type == "cpu" and slots.numel():
        # Looked at before anything is written; elsewhere a look would stall the device.
        low, high = (int(edge) for edge in torch.aminmax(slots))
        if low < -1 or high >= key_cache.shape[0] * block_size:
            raise InvalidArgumentError(
                f"kv_write: slots lie within {low} and {high}, the cache has slots 0 to "
                f"{key_cache.shape[0] * block_size - 1}"
            )
        if low >= 0:
            place = (slots // block_size, slots % block_size)
            key_cache[place], value_cache[place] = key, value
            return
    kept = slots >= 0
    slots = slots[kept]
    place = (slots // block_size, slots % block_size)
    key_cache[place], value_cache[place] = key[kept], value[kept]


KERNELS: dict[str, Callable[..., Any]] = {
    kernel.__name__: kernel
    for kernel in (
        embedding,
        linear,
        matmul,
        rms_norm,
        add_rms_norm,
        layer_norm,
        silu_and_mul,
        gelu,
        softmax,
        rope,
        kv_write,
        attention,
        greedy_sample,
        sample,
    )
} | quantised.KERNELS


def register(
    table: KernelTable,
    supports: Callable[..., list[str]],
    kernels: dict[str, Callable[..., Any]],
    *,
    name: str = "torch",
    priority: int = 0,
) -> None:
    """Put ``kernels`` into a provider's table under one name, priority and predicate."""
    for operation, kernel in kernels.items():
        table.register(operation, kernel, name=name, priority=priority, supports=supports)
