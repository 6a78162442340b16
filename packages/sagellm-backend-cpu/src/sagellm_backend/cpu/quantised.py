"""Linear over int8 and int4 weights: compiled for few rows, by torch's products for many.

Few rows wait for the weight, which the compiled kernels read as it is stored: of int8 by the matrix
unit of the processor, where it has one, and by vectors else. Many rows wait for arithmetic. Of fp32
the matrix unit does most; of others torch's kernels over floating weights, so that a part of the
weight at a time is made floating for them. ``benchmarks/quantised_linear.py`` has the figures behind the limits.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sagellm_backend.cpu import capturing, matrices
from sagellm_backend.cpu.compiled import matrix_words as w
from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.cpu.operands import addressable, on_host
from sagellm_backend.torch_support import quantised as plain

MAX_ROWS = {torch.float32: 128, torch.float16: 64, torch.bfloat16: 64}
"""By dtype, the most rows with which the compiled kernels were measured to be faster; of fp32 by the
matrix unit any number is."""

_KERNELS = {
    "int8": Kernel("int_linear", "int8"),
    "int4": Kernel("int_linear", "int4"),
    "matrix": Kernel("int_matrix", "int8"),
}
_CHUNKS = (1 << 14, 1 << 17)
_SMALL, _LONGEST, _KEPT, _FEW = 1 << 16, 1 << 21, 1 << 22, 32
# Bytes of a weight that one thread reads before another has begun, of the longest chunk, and of
# memory that is kept between calls; and rows for which reading takes longer than multiplying.
_PART = 1 << 20
_GROUP = 32
_EIGHT = torch.tensor([8], dtype=torch.int8)
_EIGHT_AT = _EIGHT.data_ptr()
_FP32, _INT8 = torch.float32, torch.int8
_threads = torch.get_num_threads
_Words = ctypes.c_int64 * 13
_MatrixWords = ctypes.c_int64 * 14
_packed, _packed_matrix = struct.Struct("13q").pack, struct.Struct("14q").pack


def linear_w8a16(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    y = _over_int8(x, weight, scale, bias)
    return plain.linear_w8a16(x, weight, scale, bias, part=_PART) if y is None else y


def linear_w4a16(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    plain.check_int4(x, weight, scale, zero, bias)
    inputs = 2 * weight.shape[1]
    even_groups = inputs % (_GROUP * scale.shape[1]) == 0
    if (
        even_groups
        and x.numel() <= MAX_ROWS[x.dtype] * inputs
        and _fits(x, weight, scale, bias, zero)
    ):
        pairs = x.reshape(-1, inputs // 2, 2).transpose(1, 2).reshape(-1, inputs)
        y = _run("int4", pairs, weight, scale, zero, bias, inputs)
        if y is not None:
            return y.view(*x.shape[:-1], weight.shape[0])
    return plain.linear_w4a16(x, weight, scale, zero, bias, part=_PART)


def linear_w8a8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    plain.check_int8(x, weight, scale, bias)
    multiply = int_mm()
    if multiply is None or not x.numel():
        return plain.linear_w8a8(x, weight, scale, bias, part=_PART)
    codes, sizes = plain.quantise_rows(x.reshape(-1, weight.shape[1]))
    product = multiply(codes.to(torch.int8), weight.t()).float().mul_(sizes).mul_(scale)
    if bias is not None:
        product += bias
    return product.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


@cache
def int_mm() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Torch's product of int8 matrices into int32; ``None`` where this torch has none that is right."""
    found = getattr(torch.ops.aten, "_int_mm", None)
    if found is None:
        return None
    multiply: Callable[[Tensor, Tensor], Tensor] = found.default
    probe = torch.tensor([[127, -128, 1], [-128, -128, -127]], dtype=torch.int8)
    try:
        product = multiply(probe, probe.t())
    except (RuntimeError, TypeError):
        return None
    return multiply if product.tolist() == [[32514, 1], [1, 48897]] else None


def _over_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """The compiled kernel's result; ``None`` where there is none for these, or they are misuse.

    Looks once at each property: small products wait for what a call does besides its kernel.
    """
    dtype, shape, wanted = x.dtype, x.shape, weight.shape
    if len(wanted) != 2 or dtype not in MAX_ROWS or weight.dtype is not _INT8:
        return None
    outputs, inputs = wanted
    if not shape or shape[-1] != inputs or scale.shape != (outputs,) or scale.dtype is not _FP32:
        return None
    size = x.numel()
    function = _matrix_kernel() if outputs >= w.SIDE and inputs <= w.MOST_INPUTS else None
    few = size <= MAX_ROWS[dtype] * inputs or (function is not None and dtype is _FP32)
    if not size or not outputs or not few:
        return None
    if bias is not None and (bias.shape != scale.shape or bias.dtype is not dtype):
        return None
    if not on_host(x, weight, scale) or not (bias is None or on_host(bias)):
        return None
    try:
        if not (weight.is_contiguous() and scale.is_contiguous()):
            return None
        if function is None:
            return _run("int8", x, weight, scale, None, bias, inputs)
        if dtype is not _FP32 or not x.is_contiguous():
            x = x.contiguous().float()
        shift = bias if bias is None else bias.contiguous().float()
        flat = len(shape) == 2
        y = x.new_empty(shape[0], outputs) if flat else x.new_empty(*shape[:-1], outputs)
        tensors = x.data_ptr(), weight.data_ptr(), scale.data_ptr()
        others = 0 if shift is None else shift.data_ptr(), y.data_ptr()
    except RuntimeError:
        return None  # without memory of its own: sparse, or of torch.func
    plan = _plan(size // inputs, outputs, inputs, _threads())
    address = _address_of(plan.scratch)
    # In a third of the time that _Words(...) takes.
    words = _MatrixWords.from_buffer_copy(
        _packed_matrix(0, 0, *tensors, *others, *plan.words, address, plan.each)
    )
    team.run(function, words, plan.chunks)
    return y if dtype is _FP32 else y.to(dtype)


class _Plan(NamedTuple):
    """How threads share a product by the matrix unit."""

    words: tuple[int, ...]
    chunks: int
    each: int
    scratch: int


@lru_cache(256)
def _plan(rows: int, outputs: int, inputs: int, threads: int) -> _Plan:
    block = min(rows, w.MOST_ROWS, max(w.LEAST_ROWS, w.MOST_DIGITS // inputs))
    if outputs * inputs <= _SMALL:
        size = -(-outputs // w.SIDE) * w.SIDE
    elif rows > _FEW:
        size = 4 * w.SIDE  # neighbours, whose results share lines
    else:
        # One part each is read faster than chunks in turns; of large ones a thread that is held up
        # leaves some to the others.
        longest = max(1, _LONGEST // (inputs * w.SIDE))
        size = w.SIDE * min(-(-outputs // (w.SIDE * threads)), longest)
    each, chunks = w.scratch_bytes(block, inputs), -(-rows // block) * -(-outputs // size)
    return _Plan((inputs, outputs, rows, size, block), chunks, each, each * min(threads, chunks))


@cache
def _matrix_kernel() -> Any:
    """The function of the kernel by the matrix unit, or ``None``."""
    return _KERNELS["matrix"].function() if matrices.available(matrices.INT8) else None


class _Scratch(threading.local):
    """Memory that a thread's calls use one after the other; what is large is kept for one call."""

    memory: Any = None
    size = address = 0

    def of(self, nbytes: int) -> int:
        """The address of so many bytes, which are good until the next call of this."""
        if self.size < nbytes or self.size > _KEPT:
            self.memory = (ctypes.c_char * (nbytes + w.LINE))()
            self.size = nbytes
            self.address = ctypes.addressof(self.memory) + w.LINE - 1 & -w.LINE
        return self.address


_scratch = _Scratch()


def _address_of(nbytes: int) -> int:
    """The address of so many bytes, for one launch; in a capture they are the graph's."""
    if capturing.mine() is None:
        return _scratch.of(nbytes)
    return torch.empty(nbytes + w.LINE, dtype=torch.uint8).data_ptr() + w.LINE - 1 & -w.LINE


def _run(
    dtype: str,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    inputs: int,
) -> Tensor | None:
    """The compiled kernel's result; ``None`` where there is no kernel, or no memory to read."""
    function = _KERNELS[dtype].function()
    if function is None:
        return None
    outputs, nbytes = weight.shape
    wide = x if x.dtype is _FP32 and x.is_contiguous() else x.contiguous().float()
    shift = bias if bias is None or bias.dtype is _FP32 else bias.float()
    y = wide.new_empty((*x.shape[:-1], outputs))
    try:
        addresses = (
            wide.data_ptr(),
            weight.data_ptr(),
            scale.data_ptr(),
            _EIGHT_AT if zero is None else zero.data_ptr(),
            0 if shift is None else shift.data_ptr(),
            y.data_ptr(),
        )
    except RuntimeError:
        return None  # a tensor of torch.func, which has no memory of its own
    rows, groups = wide.numel() // inputs, scale.numel() // outputs
    share = weight.numel() // (3 * torch.get_num_threads())
    size = max(8, min(max(share, _CHUNKS[0]), _CHUNKS[1]) // nbytes // 8 * 8)
    words = _Words.from_buffer_copy(
        _packed(0, *addresses, inputs, outputs, rows, groups, size, zero is not None)
    )
    team.run(function, words, -(-outputs // size))
    return y if x.dtype is _FP32 else y.to(x.dtype)


def _fits(*tensors: Tensor | None) -> bool:
    """Whether compiled code may read these."""
    given = [item for item in tensors if item is not None]
    if not given[0].numel() or not addressable(*given):
        return False
    # x and a bias are made contiguous, the weight and what belongs to it are read as they lie.
    return all(item.is_contiguous() for item in given[1:])


KERNELS: dict[str, Callable[..., Any]] = {
    "linear_w8a16": linear_w8a16,
    "linear_w8a8": linear_w8a8,
    "linear_w4a16": linear_w4a16,
}
