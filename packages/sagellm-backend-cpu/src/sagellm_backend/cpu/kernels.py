"""The operations that this package computes otherwise than plain torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.torch_support.misuse import MisuseError


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Half types: normalise in fp32, round, then scale, which is the order that models train with."""
    if x.dtype is not weight.dtype or weight.shape != x.shape[-1:] or not eps >= 0:
        raise MisuseError
    if x.dtype is torch.float32:
        return functional.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.mul_(scale).to(x.dtype).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum in the dtype, and its norm."""
    if x.shape != residual.shape or x.dtype is not residual.dtype:
        raise MisuseError
    total = x + residual
    return rms_norm(total, weight, eps), total


KERNELS: dict[str, Callable[..., Any]] = {"rms_norm": rms_norm, "add_rms_norm": add_rms_norm}
