"""flashinfer's kernels, where that package is installed (the extra ``[flashinfer]``) and asked for.

``SAGELLM_CUDA_KERNELS=flashinfer`` asks for them. They are not taken otherwise: they are bound to
the signatures of flashinfer-python 0.7.2 and have never run on a card, so nobody knows their speed
there. flashinfer compiles a kernel at its first use, with nvcc and ninja of the machine.

What a kernel does not take goes to the one that would have been chosen without. Left out are
``fused_add_rmsnorm``, which writes over both its inputs and would cost two copies of them, and
``append_paged_kv_cache``, which cannot skip a token.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cuda import asked
from sagellm_backend.cuda.flashinfer_plans import Form, Plans
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import UnavailableError
from sagellm_backend.torch_support import attention as plain
from sagellm_backend.torch_support import kernels
from sagellm_backend.torch_support.misuse import (
    MisuseError,
    bad_eps,
    check_rope,
    require_one_device,
)

HEAD_DIMS = (64, 128, 256)
"""What flashinfer's rope and attention have kernels for, among what all of its builds have."""

ROTARY = 32
"""A rotated part must be a multiple of this: a thread turns up to 16 numbers of each half."""

LEAST_CAPABILITY = (8, 0)
"""Of the cards that its bf16 kernels are for."""

_HALF = frozenset({torch.float16, torch.bfloat16})

Limits = Callable[..., list[str]]


def load(environ: Mapping[str, str] = os.environ) -> Any | None:
    """The module flashinfer where it is asked for, else ``None``.

    Raises :class:`UnavailableError` where it cannot be imported, and as :func:`.asked.kernels`.
    """
    if "flashinfer" not in asked.kernels(environ):
        return None
    try:
        return importlib.import_module("flashinfer")
    except Exception as error:
        raise UnavailableError(
            f"{asked.VARIABLE} asks for flashinfer, which cannot be imported: {error}",
            hint="pip install 'sagellm-backend-cuda[flashinfer]', or unset the variable.",
        ) from error


def offers(
    library: Any, plans: Plans, attention: Callable[..., Tensor], capturing: Callable[[], bool]
) -> dict[str, tuple[Callable[..., Any], Limits]]:
    """By operation, its kernel and why it does not take some statics.

    ``attention`` computes the steps that flashinfer does not, ``capturing()`` tells whether the
    current stream is being captured: a plan would be part of the graph for good.
    """
    return {
        "rms_norm": (_rms_norm(library), half_limits),
        "silu_and_mul": (_silu_and_mul(library), half_limits),
        "rope": (_rope(library), rope_limits),
        "attention": (_attention(plans, attention, capturing), attention_limits),
    }


def half_limits(dtype: DType | None = None, **_: Any) -> list[str]:
    """For kernels that take fp16 and bf16."""
    if dtype in (None, DType.FP16, DType.BF16):
        return []
    return [f"flashinfer computes it in fp16 and bf16, not {dtype.value}"]


def rope_limits(
    dtype: DType | None = None,
    head_dim: int | None = None,
    rotary_dim: int | None = None,
    **_: Any,
) -> list[str]:
    """Why flashinfer's rope does not take these statics."""
    found = [*half_limits(dtype), *_head_limits(head_dim)]
    if rotary_dim is not None and rotary_dim % ROTARY:
        found.append(f"flashinfer rotates multiples of {ROTARY} dimensions, not {rotary_dim}")
    return found


def attention_limits(
    dtype: DType | None = None,
    head_dim: int | None = None,
    mode: str | None = None,
    has_sinks: bool = False,
    **_: Any,
) -> list[str]:
    """Why flashinfer's attention does not take these statics."""
    found = [*half_limits(dtype), *_head_limits(head_dim)]
    if mode == "ragged_prefill":
        found.append("packed keys are left to torch's flash kernels")
    if has_sinks:
        found.append("flashinfer is not used for sinks")
    return found


def _head_limits(head_dim: int | None) -> list[str]:
    if head_dim is None or head_dim in HEAD_DIMS:
        return []
    return [f"head_dim {head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"]


def _rms_norm(library: Any) -> Callable[..., Tensor]:
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        fits = _half(x) and x.dtype is weight.dtype and weight.shape == x.shape[-1:]
        if not fits or x.shape[-1] % 8 or bad_eps(eps):
            return kernels.rms_norm(x, weight, eps)
        require_one_device("rms_norm", x, weight)
        out: Tensor = library.rmsnorm(x.view(-1, x.shape[-1]), weight, eps=eps)
        return out.view(x.shape)

    return rms_norm


def _silu_and_mul(library: Any) -> Callable[..., Tensor]:
    def silu_and_mul(x: Tensor) -> Tensor:
        if not _half(x) or x.shape[-1] % 2:
            return kernels.silu_and_mul(x)
        out: Tensor = library.silu_and_mul(x)
        return out

    return silu_and_mul


def _rope(library: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def rope(
        q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, *, style: str = "neox"
    ) -> tuple[Tensor, Tensor]:
        check_rope(q, k, positions, cos_sin, style)
        require_one_device("rope", q, k, positions, cos_sin)
        size = q.shape[-1]
        whole = positions.is_contiguous() and cos_sin.is_contiguous()
        limits = rope_limits(head_dim=size, rotary_dim=cos_sin.shape[1])
        if limits or not (whole and _half(q) and _half(k)):
            return kernels.rope(q, k, positions, cos_sin, style=style)
        turned = library.apply_rope_with_cos_sin_cache(
            positions, q.flatten(1), k.flatten(1), size, cos_sin, is_neox=style == "neox"
        )
        return turned[0].view(q.shape), turned[1].view(k.shape)

    return rope


def _attention(
    plans: Plans, otherwise: Callable[..., Tensor], capturing: Callable[[], bool]
) -> Callable[..., Tensor]:
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
        if sinks is not None or not _fits(q, k, v, metadata) or capturing():
            return otherwise(q, k, v, metadata, scale=scale, sinks=sinks, **options)
        plain.check(q, k, v, metadata, scale=scale, **options)
        require_one_device("attention", q, k, v)
        _, heads, size = q.shape
        form = Form(heads, k.shape[2], size, q.dtype, float(scale), causal, window, softcap)
        out: Tensor = plans.of(metadata, form, q.device).run(q, (k, v))
        return out

    return attention


def _fits(q: Tensor, k: Tensor, v: Tensor, metadata: AttentionMetadata) -> bool:
    """Paged, and K and V by the same strides: one set of them serves both."""
    if metadata.block_table is None or not _half(q) or q.shape[-1] not in HEAD_DIMS:
        return False
    return k.dim() == 4 and k.stride() == v.stride() and k.stride(-1) == 1


def _half(x: Tensor) -> bool:
    return x.dtype in _HALF and x.is_contiguous() and x.numel() > 0
