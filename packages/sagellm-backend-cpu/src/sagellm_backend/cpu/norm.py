"""RMS norms by a compiled kernel that reads each row once."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import kernels_of, on_host
from sagellm_backend.torch_support.misuse import FLOATING, MisuseError, bad_eps

_FP32, _rms_norm, _empty_like = torch.float32, torch.rms_norm, torch.empty_like
_KERNELS = kernels_of("rms_norm")
_CHUNK = 1 << 15
_words, _packed = (ctypes.c_int64 * 10).from_buffer_copy, struct.Struct("<9qfxxxx").pack


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Half types: normalise in fp32, round, then scale, which is the order that models train with."""
    width = _width(x.shape, x.dtype, weight, eps)
    try:
        pair = _compiled(x, None, weight, width, eps)
    except RuntimeError:
        pair = None  # a tensor without strides, or of torch.func, which has no memory of its own
    return _plain(x, weight, eps) if pair is None else pair[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum in the dtype, and its norm."""
    shape, dtype = x.shape, x.dtype
    if residual.shape != shape or residual.dtype is not dtype:
        raise MisuseError
    width = _width(shape, dtype, weight, eps)
    try:
        pair = _compiled(x, residual, weight, width, eps)
    except RuntimeError:
        pair = None
    if pair is not None:
        return pair
    total = x + residual
    return _plain(total, weight, eps), total


def _width(shape: torch.Size, dtype: torch.dtype, weight: Tensor, eps: float) -> int:
    """The width of rows of this shape and dtype, if they and the rest fit."""
    (width,) = weight.shape  # other dimensions do not unpack, which is a ValueError as misuse is
    if weight.dtype is not dtype or dtype not in FLOATING or not width:
        raise MisuseError
    if not shape or shape[-1] != width or bad_eps(eps):
        raise MisuseError
    return width


def _plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype is _FP32:
        return _rms_norm(x, weight.shape, weight, eps)
    # Without a weight torch rounds what it normalised in fp32.
    return _rms_norm(x, weight.shape, None, eps).mul_(weight)


def _compiled(
    x: Tensor, residual: Tensor | None, weight: Tensor, width: int, eps: float
) -> tuple[Tensor, Tensor] | None:
    """The norm and the sum; ``None`` where the kernel does not take these tensors."""
    if not (on_host(x, weight) if residual is None else on_host(x, residual, weight)):
        return None
    function = _KERNELS[x.dtype].function()
    if function is None:
        return None
    x, weight = x.contiguous(), weight.contiguous()
    y = _empty_like(x)
    added, total = 0, x
    if residual is not None:
        residual = residual.contiguous()
        added, total = residual.data_ptr(), _empty_like(x)
    rows, chunk = x.numel() // width, _CHUNK // width or 1
    # fmt: off
    words = _words(_packed(
        0, x.data_ptr(), added, weight.data_ptr(), y.data_ptr(), total.data_ptr(),
        rows, width, chunk, eps,
    ))
    # fmt: on
    team.run(function, words, -(-rows // chunk))
    return y, total
