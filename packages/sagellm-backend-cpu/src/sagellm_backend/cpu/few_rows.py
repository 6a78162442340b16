"""Linear of few rows, as in decoding: a kernel that reads the weight once, where it lies."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import kernels_of, on_host

ROWS = {torch.float32: (1, 12), torch.float16: (1, 16), torch.bfloat16: (1, 4)}
"""By dtype, the fewest and the most rows with which the kernel is faster (benchmarks/linear.py).

torch multiplies more rows of bf16 by AMX.
"""

SMALL = 1 << 18
"""Elements of a weight of fp32 below which torch is as fast with one row or two."""

_KERNELS = kernels_of("row_linear")
_LEAST, _CHUNK = 1 << 14, 1 << 19
_words, _packed = (ctypes.c_int64 * 9).from_buffer_copy, struct.Struct("9q").pack
_get_num_threads = torch.get_num_threads
_FP16, _FP32 = torch.float16, torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``x @ weight.T + bias`` of few rows, accumulated in fp32; ``None`` where it is not for this.

    The same bits whatever the number of threads, and of a row whatever the others are. The first
    call with a dtype loads the kernel.
    """
    try:
        return _compiled(x, weight, bias)
    except RuntimeError:
        return None  # a tensor without strides, or of torch.func, which has no memory of its own


def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    dtype, shape = weight.dtype, x.shape
    limits = ROWS.get(dtype)
    if limits is None or weight.dim() != 2 or x.dtype is not dtype:
        return None
    outputs, inputs = weight.shape
    count, (low, high) = x.numel(), limits
    if not low * inputs <= count <= high * inputs or shape[-1] != inputs:
        return None
    if dtype is _FP32 and count <= 2 * inputs and outputs * inputs < SMALL:
        return None
    if not on_host(x, weight) or not weight.is_contiguous() or not _added(bias, dtype, outputs):
        return None
    function = _KERNELS[dtype].function()
    if function is None:
        return None
    wide = x.contiguous()
    if dtype is _FP16:
        wide = wide.float()
    y = x.new_empty(*shape[:-1], outputs)
    row, threads = inputs * dtype.itemsize, _get_num_threads()
    # As many for each thread, which the next ones of a busy processor may take over.
    pieces = threads * max(2, -(-outputs * row // (threads * _CHUNK)))
    size = max(-(-outputs // pieces) + 7 & -8, _LEAST // row & -8, 8)
    added = 0 if bias is None else bias.data_ptr()
    # fmt: off
    words = _words(_packed(
        0, wide.data_ptr(), weight.data_ptr(), added, y.data_ptr(),
        count // inputs, inputs, outputs, size,
    ))
    # fmt: on
    team.run(function, words, -(-outputs // size))
    return y


def _added(bias: Tensor | None, dtype: torch.dtype, outputs: int) -> bool:
    """Whether the kernel can add this bias."""
    if bias is None:
        return True
    if bias.dtype is not dtype or bias.shape != (outputs,):
        return False
    return on_host(bias) and bias.is_contiguous()
