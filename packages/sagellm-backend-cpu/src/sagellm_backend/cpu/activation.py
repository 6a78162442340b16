"""SwiGLU by a compiled kernel, in one pass over its rows."""

from __future__ import annotations

import ctypes

from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import addressable, kernels_of
from sagellm_backend.torch_support import kernels

_KERNELS = kernels_of("silu_and_mul")
_CHUNK = 1 << 13
_Words = ctypes.c_int64 * 6


def silu_and_mul(x: Tensor) -> Tensor:
    """See the operation's table. Half types are computed in fp32 and rounded once."""
    kernel = _KERNELS.get(x.dtype)
    function = None if kernel is None else kernel.function()
    if function is None or not addressable(x) or not x.is_contiguous() or not x.numel():
        return kernels.silu_and_mul(x)
    *rows, size = x.shape
    if size % 2:
        return kernels.silu_and_mul(x)  # which refuses it
    width, count = size // 2, x.numel() // size
    y = x.new_empty((*rows, width))
    try:
        source, target = x.data_ptr(), y.data_ptr()
    except RuntimeError:
        return kernels.silu_and_mul(x)  # a tensor of torch.func has no memory of its own
    step = max(1, _CHUNK // width)
    team.run(function, _Words(0, source, target, count, width, step), -(-count // step))
    return y
