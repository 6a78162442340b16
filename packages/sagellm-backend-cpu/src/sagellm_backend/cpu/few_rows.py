"""Linear of few rows, as in decoding: kernels that read the weight once, where it lies.

By vectors, and of bf16 by the matrix unit of the processor, where it has one.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.cpu import matrices
from sagellm_backend.cpu.compiled import matrix_words as w
from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.cpu.operands import kernels_of, on_host

ROWS = {torch.float32: 12, torch.float16: 16, torch.bfloat16: 4}
"""By dtype, the most rows with which the kernel by vectors is faster (benchmarks/linear.py)."""

MATRIX_ROWS, MATRIX_INPUTS = 128, 2048
"""The most rows of bf16 with which that by the matrix unit is; half as many where there are more inputs,
since those of 64 rows do not stay in a core's own cache then."""

SMALL = 1 << 18
"""Elements of a weight of fp32 below which torch is as fast with one row or two."""

_KERNELS = kernels_of("row_linear")
_LEAST, _CHUNK = 1 << 14, 1 << 19
_MATRIX_KERNEL = Kernel("row_matrix", "bf16")
_words, _packed = (ctypes.c_int64 * 9).from_buffer_copy, struct.Struct("9q").pack
_matrix_words, _packed_matrix = (ctypes.c_int64 * 12).from_buffer_copy, struct.Struct("12q").pack
_get_num_threads = torch.get_num_threads
_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """``x @ weight.T + bias`` of few rows, accumulated in fp32; ``None`` where it is not for this.

    The same bits whatever the number of threads, and of a row whatever the others are, but that
    those of bf16 differ with the kernel. The first call with a dtype loads the kernel.
    """
    try:
        return _compiled(x, weight, bias)
    except RuntimeError:
        return None  # a tensor without strides, or of torch.func, which has no memory of its own


def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    dtype, shape = weight.dtype, x.shape
    most = ROWS.get(dtype)
    if most is None or weight.dim() != 2 or x.dtype is not dtype:
        return None
    outputs, inputs = weight.shape
    count, by_matrix = x.numel(), False
    if not 0 < count <= most * inputs:
        most = MATRIX_ROWS if inputs <= MATRIX_INPUTS else MATRIX_ROWS // 2
        by_matrix = dtype is _BF16 and 0 < count <= most * inputs
        if not by_matrix or inputs % w.PAIRED_INPUTS or outputs < w.SIDE:
            return None
    if shape[-1] != inputs:
        return None
    if dtype is _FP32 and count <= 2 * inputs and outputs * inputs < SMALL:
        return None
    if not on_host(x, weight) or not weight.is_contiguous() or not _added(bias, dtype, outputs):
        return None
    function = _matrix_kernel() if by_matrix else _KERNELS[dtype].function()
    if function is None:
        return None
    wide = x.contiguous()
    if by_matrix:
        return _by_matrix(function, wide, weight, bias)
    if dtype is _FP16:
        wide = wide.float()
    y = x.new_empty(*shape[:-1], outputs)
    size = _chunk(outputs, inputs * dtype.itemsize, 8)
    added = 0 if bias is None else bias.data_ptr()
    # fmt: off
    words = _words(_packed(
        0, wide.data_ptr(), weight.data_ptr(), added, y.data_ptr(),
        count // inputs, inputs, outputs, size,
    ))
    # fmt: on
    team.run(function, words, -(-outputs // size))
    return y


def _by_matrix(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    y = x.new_empty(*x.shape[:-1], outputs)
    size = _chunk(outputs, inputs * 2, w.SIDE)
    chunks, each = -(-outputs // size), w.bf16_scratch_bytes(rows, inputs, size)
    scratch = x.new_empty((_get_num_threads() * each + w.LINE) // 2)
    # fmt: off
    words = _matrix_words(_packed_matrix(
        0, 0, x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
        rows, inputs, outputs, size, scratch.data_ptr() + w.LINE - 1 & -w.LINE, each,
    ))
    # fmt: on
    team.run(function, words, chunks)
    return y


def _chunk(outputs: int, row: int, step: int) -> int:
    """Outputs, of so many bytes of weight, that a thread takes at once: a multiple of ``step``."""
    threads = _get_num_threads()
    # As many for each thread, which the next ones of a busy processor may take over.
    pieces = threads * max(2, -(-outputs * row // (threads * _CHUNK)))
    return max(-(-outputs // pieces) + step - 1 & -step, _LEAST // row & -step, step)


@cache
def _matrix_kernel() -> Any:
    """The function of the kernel by the matrix unit, or ``None``."""
    return _MATRIX_KERNEL.function() if matrices.available(matrices.BF16) else None


def _added(bias: Tensor | None, dtype: torch.dtype, outputs: int) -> bool:
    """Whether the kernel can add this bias."""
    if bias is None:
        return True
    if bias.dtype is not dtype or bias.shape != (outputs,):
        return False
    return on_host(bias) and bias.is_contiguous()
