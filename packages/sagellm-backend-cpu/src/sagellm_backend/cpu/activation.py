"""SwiGLU by a compiled kernel, in one pass over its rows."""

from __future__ import annotations

import ctypes
import struct

from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import kernels_of, on_host
from sagellm_backend.torch_support import kernels

_KERNELS = kernels_of("silu_and_mul")
_CHUNK = 1 << 13
_words, _packed = (ctypes.c_int64 * 6).from_buffer_copy, struct.Struct("6q").pack


def silu_and_mul(x: Tensor) -> Tensor:
    """See the operation's table. Half types are computed in fp32 and rounded once."""
    try:
        y = _compiled(x)
    except RuntimeError:
        y = None  # a tensor without strides, or of torch.func, which has no memory of its own
    return kernels.silu_and_mul(x) if y is None else y


def _compiled(x: Tensor) -> Tensor | None:
    """The result; ``None`` for what the kernel does not take, and for misuse."""
    kernel = _KERNELS.get(x.dtype)
    if kernel is None or not on_host(x) or not x.is_contiguous():
        return None
    *rows, size = x.shape
    count = x.numel()
    function = kernel.function()
    if function is None or not count or size % 2:
        return None
    count //= size
    width = size // 2
    y = x.new_empty(*rows, width)
    chunks = -(-count // (_CHUNK // width or 1))
    chunk = -(-count // chunks)
    words = _words(_packed(0, x.data_ptr(), y.data_ptr(), count, width, chunk))
    team.run(function, words, chunks)
    return y
