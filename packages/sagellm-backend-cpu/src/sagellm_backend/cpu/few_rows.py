"""Linear of few rows, as in decoding: a kernel that reads the weight once, where it lies."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import addressable, kernels_of

ROWS = {torch.float32: (1, 12), torch.float16: (1, 16), torch.bfloat16: (1, 4)}
"""By dtype, the fewest and the most rows with which the kernel is faster (benchmarks/linear.py).

torch multiplies more rows of bf16 by AMX.
"""

SMALL = 1 << 18
"""Elements of a weight of fp32 below which torch is as fast with one row or two."""

_KERNELS = kernels_of("row_linear")
_LEAST, _CHUNK = 1 << 14, 1 << 19
_Words = ctypes.c_int64 * 9
_FP16, _FP32 = torch.float16, torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``x @ weight.T + bias`` of few rows, accumulated in fp32; ``None`` where it is not for this.

    The same bits whatever the number of threads, and of a row whatever the others are. The first
    call with a dtype loads the kernel.
    """
    dtype = weight.dtype
    limits = ROWS.get(dtype)
    if limits is None or weight.dim() != 2:
        return None
    outputs, inputs = weight.shape
    low, high = limits
    if not low * inputs <= x.numel() <= high * inputs or not _fits(x, weight, bias, dtype):
        return None
    if dtype is _FP32 and x.numel() <= 2 * inputs and outputs * inputs < SMALL:
        return None
    function = _KERNELS[dtype].function()
    if function is None:
        return None
    rows = x.numel() // inputs
    wide = x.contiguous()
    if dtype is _FP16:
        wide = wide.float()
    y = x.new_empty((*x.shape[:-1], outputs))
    try:
        addresses = wide.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr()
        result = y.data_ptr()
    except RuntimeError:
        return None  # a tensor of torch.func, which has no memory of its own
    row = inputs * weight.itemsize
    threads = torch.get_num_threads()
    # As many for each thread, which the next ones of a busy processor may take over.
    pieces = threads * max(2, -(-outputs * row // (threads * _CHUNK)))
    size = max(-(-outputs // pieces) + 7 & -8, _LEAST // row & -8, 8)
    words = _Words(0, *addresses, result, rows, inputs, outputs, size)
    team.run(function, words, -(-outputs // size))
    return y


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    if x.dtype is not dtype or x.shape[-1:] != weight.shape[1:]:
        return False
    if bias is None:
        return addressable(x, weight) and weight.is_contiguous()
    if bias.dtype is not dtype or bias.shape != weight.shape[:1] or not bias.is_contiguous():
        return False
    return addressable(x, weight, bias) and weight.is_contiguous()
