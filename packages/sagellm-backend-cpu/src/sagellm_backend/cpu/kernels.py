"""The operations that this package computes otherwise than plain torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.torch_support.misuse import FLOATING, MisuseError, bad_eps

_FP32, _rms_norm = torch.float32, torch.rms_norm


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Half types: normalise in fp32, round, then scale, which is the order that models train with."""
    dtype = x.dtype
    if dtype is not weight.dtype or weight.dim() != 1 or not weight.numel() or bad_eps(eps):
        raise MisuseError
    if dtype is _FP32:
        return _rms_norm(x, weight.shape, weight, eps)
    if dtype not in FLOATING or x.shape[-1:] != weight.shape:
        raise MisuseError
    # Without a weight torch rounds what it normalised in fp32.
    return _rms_norm(x, weight.shape, None, eps).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum in the dtype, and its norm."""
    if x.shape != residual.shape or x.dtype is not residual.dtype:
        raise MisuseError
    total = x + residual
    return rms_norm(total, weight, eps), total


KERNELS: dict[str, Callable[..., Any]] = {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm}
