"""Linear over int8 and int4 weights: compiled for few rows, by torch's products for many.

Few rows wait for the weight, which the compiled kernel reads as it is stored. Many rows wait for
arithmetic, in which torch's kernels over floating weights are faster, so that a part of the weight
at a time is made floating for them. ``benchmarks/linear.py`` has the figures behind the limits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.cpu.operands import addressable
from sagellm_backend.torch_support import quantised as plain

MAX_ROWS = {torch.float32: 128, torch.float16: 64, torch.bfloat16: 64}
"""By dtype, the most rows with which the compiled kernel was measured to be faster."""

_KERNELS = {"int8": Kernel("int_linear", "int8"), "int4": Kernel("int_linear", "int4")}
_CHUNKS = (1 << 14, 1 << 17)
_PART = 1 << 20
_GROUP = 32
_EIGHT = torch.tensor([8], dtype=torch.int8)
_EIGHT_AT = _EIGHT.data_ptr()
_FP32 = torch.float32
_Words = ctypes.c_int64 * 13


def linear_w8a16(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    plain.check_int8(x, weight, scale, bias)
    inputs = weight.shape[1]
    if x.numel() <= MAX_ROWS[x.dtype] * inputs and _fits(x, weight, scale, bias):
        y = _run("int8", x, weight, scale, None, bias, inputs)
        if y is not None:
            return y
    return plain.linear_w8a16(x, weight, scale, bias, part=_PART)


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
    words = _Words(0, *addresses, inputs, outputs, rows, groups, size, zero is not None)
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
