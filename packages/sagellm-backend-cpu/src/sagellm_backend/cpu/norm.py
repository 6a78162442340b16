"""RMS norms by a compiled kernel that reads each row once."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import addressable, kernels_of
from sagellm_backend.torch_support.misuse import FLOATING, MisuseError, bad_eps

_FP32, _rms_norm = torch.float32, torch.rms_norm
_KERNELS = kernels_of("rms_norm")
_CHUNK = 1 << 15
_Words = ctypes.c_int64 * 10
_eps_word = struct.Struct("<fxxxx").pack


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Half types: normalise in fp32, round, then scale, which is the order that models train with."""
    _check(x, weight, eps)
    y = _compiled(x, None, weight, eps)
    return _plain(x, weight, eps) if y is None else y[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum in the dtype, and its norm."""
    if x.shape != residual.shape or x.dtype is not residual.dtype:
        raise MisuseError
    _check(x, weight, eps)
    pair = _compiled(x, residual, weight, eps)
    if pair is not None:
        return pair
    total = x + residual
    return _plain(total, weight, eps), total


def _check(x: Tensor, weight: Tensor, eps: float) -> None:
    if x.dtype is not weight.dtype or x.dtype not in FLOATING or bad_eps(eps):
        raise MisuseError
    if weight.dim() != 1 or not weight.numel() or x.shape[-1:] != weight.shape:
        raise MisuseError


def _plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype is _FP32:
        return _rms_norm(x, weight.shape, weight, eps)
    # Without a weight torch rounds what it normalised in fp32.
    return _rms_norm(x, weight.shape, None, eps).mul_(weight)


def _compiled(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor] | None:
    """The norm and the sum; ``None`` where the kernel does not take these tensors."""
    function = _KERNELS[x.dtype].function()
    other = x if residual is None else residual
    if function is None or not addressable(x, other, weight):
        return None
    x, weight = x.contiguous(), weight.contiguous()
    if residual is not None:
        residual = residual.contiguous()
    y = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    width = weight.numel()
    rows = x.numel() // width
    size = max(1, _CHUNK // width)
    try:
        addresses = (
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            y.data_ptr(),
            total.data_ptr(),
        )
    except RuntimeError:
        return None  # a tensor of torch.func, which has no memory of its own
    bits = int.from_bytes(_eps_word(eps), "little")
    team.run(function, _Words(0, *addresses, rows, width, size, bits), -(-rows // size))
    return y, total
