"""Operations by kernels that only XPUs have: bound to Paddle's signatures, not yet run on hardware.

Left out, because they would break the contract in silence (phi/kernels, release 3.2):
``variable_length_memory_efficient_attention`` reads neither lengths nor ``causal`` on XPUs;
``flash_attn_unpadded`` drops ``causal`` where keys and queries differ in number, and multiplies in
int16; ``fused_rotary_position_embedding`` takes angles in the dtype of the queries, so that it serves
fp32 only; ``block_multihead_attention_xpu`` projects, rotates and writes the cache as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle.incubate.nn import functional as fused
from paddle.nn import functional

from sagellm_backend.dtypes import DType
from sagellm_backend.kunlun import kernels
from sagellm_backend.kunlun.misuse import check_rope

Kernel = Callable[..., Any]
Limits = Callable[..., list[str]]


def rms_norm(x: Any, weight: Any, eps: float) -> Any:
    kernels.check_norm(x, weight, eps)
    return fused.fused_rms_norm(x, weight, None, eps, begin_norm_axis=x.ndim - 1)[0]


def add_rms_norm(x: Any, residual: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    kernels.check_norm(x, weight, eps)
    kernels.check_same(x, residual)
    found = fused.fused_rms_norm(
        x, weight, None, eps, begin_norm_axis=x.ndim - 1, residual=residual
    )
    return found[0], found[1]


def silu_and_mul(x: Any) -> Any:
    kernels.check_halves(x)
    return functional.swiglu(x)


def rope(q: Any, k: Any, positions: Any, cos_sin: Any, *, style: str = "neox") -> tuple[Any, Any]:
    check_rope(q, k, positions, cos_sin, style)
    if cos_sin.shape[1] != q.shape[2] or not q.shape[0]:
        return kernels.rope(q, k, positions, cos_sin, style=style)
    cos, sin = paddle.chunk(paddle.index_select(cos_sin, positions), 2, axis=-1)
    spread = _twice if style == "neox" else _each_twice
    # Paddle calls it neox where neighbours are paired, which is GPT-J's way.
    turned = fused.fused_rotary_position_embedding(
        paddle.unsqueeze(q, 0),
        paddle.unsqueeze(k, 0),
        sin=spread(sin),
        cos=spread(cos),
        use_neox_rotary_style=style == "gptj",
    )
    return paddle.squeeze(turned[0], axis=0), paddle.squeeze(turned[1], axis=0)


def _twice(angles: Any) -> Any:
    return _four(paddle.concat([angles, angles], axis=-1))


def _each_twice(angles: Any) -> Any:
    return _four(paddle.flatten(paddle.stack([angles, angles], axis=-1), -2, -1))


def _four(angles: Any) -> Any:
    """(tokens, dim) as (1, tokens, 1, dim), the shape that Paddle asks for."""
    return paddle.unsqueeze(angles, [0, 2])


def _any(**_: Any) -> list[str]:
    return []


def _fp32(dtype: DType | None = None, **_: Any) -> list[str]:
    if dtype in {None, DType.FP32}:
        return []
    return ["the fused kernel rounds the angles to the dtype"]


KERNELS: dict[str, tuple[Kernel, Limits]] = {
    "rms_norm": (rms_norm, _any),
    "add_rms_norm": (add_rms_norm, _any),
    "silu_and_mul": (silu_and_mul, _any),
    "rope": (rope, _fp32),
}
"""By operation: the kernel, and why it cannot serve a call."""
