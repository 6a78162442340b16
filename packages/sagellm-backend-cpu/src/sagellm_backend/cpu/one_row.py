"""Linear of one row, as in decoding one sequence: a kernel that reads the weight once."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.cpu.operands import addressable

MAX_INPUTS = {torch.float16: 1 << 30, torch.bfloat16: 2048}
"""By dtype, the widest rows with which the kernel was measured to be faster (benchmarks/linear.py).

fp32 is not here: torch reads such weights at the speed of memory."""

_KERNELS = {
    torch.float16: Kernel("row_linear", "fp16"),
    torch.bfloat16: Kernel("row_linear", "bf16"),
}
_CHUNK = 1 << 17
_Words = ctypes.c_int64 * 8


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``x @ weight.T + bias`` of one row, accumulated in fp32; ``None`` where it is not for this.

    The same bits whatever the number of threads. The first call with a dtype loads the kernel.
    """
    dtype = weight.dtype
    if dtype not in MAX_INPUTS or not _fits(x, weight, bias, dtype):
        return None
    function = _KERNELS[dtype].function()
    if function is None:
        return None
    outputs, inputs = weight.shape
    y = x.new_empty((*x.shape[:-1], outputs))
    wide = x.float()
    try:
        addresses = wide.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr()
        result = y.data_ptr()
    except RuntimeError:
        return None  # a tensor of torch.func, which has no memory of its own
    size = max(1, _CHUNK // (inputs * 2))
    words = _Words(0, *addresses, result, inputs, outputs, size)
    team.run(function, words, -(-outputs // size))
    return y


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    if x.dtype is not dtype or weight.dim() != 2:
        return False
    inputs = weight.shape[1]
    if inputs > MAX_INPUTS[dtype] or x.shape[-1:] != (inputs,) or x.numel() != inputs:
        return False
    if bias is None:
        return addressable(x, weight) and weight.is_contiguous()
    if bias.dtype is not dtype or bias.shape != weight.shape[:1] or not bias.is_contiguous():
        return False
    return addressable(x, weight, bias) and weight.is_contiguous()
