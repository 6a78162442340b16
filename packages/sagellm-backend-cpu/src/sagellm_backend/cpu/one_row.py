"""Linear of one row, as in decoding one sequence: a kernel that reads the weight once."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel

MAX_INPUTS = {torch.float16: 1 << 30, torch.bfloat16: 2048}
"""By dtype, the widest rows with which the kernel was measured to be faster (benchmarks/linear.py).

fp32 is not here: torch reads such weights at the speed of memory."""

_KERNELS = {
    torch.float16: Kernel("row_linear", "fp16"),
    torch.bfloat16: Kernel("row_linear", "bf16"),
}
_CHUNK = 1 << 17
_PLAIN = (Tensor, Parameter)
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
    if type(x) not in _PLAIN or type(weight) not in _PLAIN or x.dtype is not dtype:
        return False
    if weight.dim() != 2 or not (weight.is_cpu and x.is_cpu):
        return False
    inputs = weight.shape[1]
    if inputs > MAX_INPUTS[dtype] or x.shape[-1:] != (inputs,) or x.numel() != inputs:
        return False
    if weight.layout is not torch.strided or not weight.is_contiguous():
        return False
    if bias is not None and not (
        type(bias) in _PLAIN
        and bias.is_cpu
        and bias.dtype is dtype
        and bias.shape == weight.shape[:1]
        and bias.is_contiguous()
    ):
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(item is not None and item.requires_grad for item in (x, weight, bias))
