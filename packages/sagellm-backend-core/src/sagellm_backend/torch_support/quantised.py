"""Linear over quantised weights in plain torch: weights are made floating a part at a time.

Right on any device, and fast on none: its weights are read, written and read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.ops.quantised import ZERO_POINT
from sagellm_backend.torch_support.misuse import FLOATING, MisuseError

PART = 1 << 24
"""Weights that are made floating at a time, where nothing else is said."""


def linear_w8a16(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, part: int = PART
) -> Tensor:
    check_int8(x, weight, scale, bias)
    parts = [
        functional.linear(x, (some * factor.unsqueeze(1)).to(x.dtype), shift)
        for some, factor, shift in _parts(part, weight, scale, bias)
    ]
    return _joined(parts)


def linear_w8a8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, part: int = PART
) -> Tensor:
    check_int8(x, weight, scale, bias)
    codes, sizes = quantise_rows(x)
    parts = []
    for some, factor, shift in _parts(part, weight, scale, bias):
        product = functional.linear(codes, some.float()) * sizes * factor
        parts.append((product if shift is None else product + shift).to(x.dtype))
    return _joined(parts)


def linear_w4a16(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    part: int = PART,
) -> Tensor:
    check_int4(x, weight, scale, zero, bias)
    parts = []
    for some, factor, shift, point in _parts(part, weight, scale, bias, zero):
        raw = some.view(torch.uint8)
        codes = torch.stack((raw & 15, raw >> 4), -1).view(torch.int8)
        points = ZERO_POINT if point is None else point.unsqueeze(2)
        grouped = (codes.view(*factor.shape, -1) - points) * factor.unsqueeze(2)
        parts.append(functional.linear(x, grouped.flatten(1).to(x.dtype), shift))
    return _joined(parts)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The whole numbers of each row, in fp32, and its scale; see the reference of this name."""
    wide = x.float()
    sizes = wide.abs().amax(-1, keepdim=True) / 127
    ratios = wide / torch.where(sizes > 0, sizes, 1)
    return ratios.round_().clamp_(-127, 127), sizes


def check_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """Refuse what linear over int8 weights does not take, by shapes and dtypes."""
    if weight.dtype is not torch.int8 or weight.dim() != 2 or not weight.numel():
        raise MisuseError
    if x.dtype not in FLOATING or x.shape[-1:] != weight.shape[1:]:
        raise MisuseError
    if scale.dtype is not torch.float32 or scale.shape != weight.shape[:1]:
        raise MisuseError
    if bias is not None and (bias.shape != scale.shape or bias.dtype is not x.dtype):
        raise MisuseError


def check_int4(
    x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None
) -> None:
    """Refuse what linear over int4 weights does not take, by shapes and dtypes."""
    if weight.dtype is not torch.int8 or weight.dim() != 2 or not weight.numel():
        raise MisuseError
    if x.dtype not in FLOATING or not x.dim() or x.shape[-1] != 2 * weight.shape[1]:
        raise MisuseError
    if scale.dtype is not torch.float32 or scale.dim() != 2 or not scale.numel():
        raise MisuseError
    if scale.shape[0] != weight.shape[0] or weight.shape[1] % scale.shape[1]:
        raise MisuseError
    if zero is not None and (zero.shape != scale.shape or zero.dtype is not torch.int8):
        raise MisuseError
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype is not x.dtype):
        raise MisuseError


def _parts(size: int, weight: Tensor, *others: Tensor | None) -> Iterator[Any]:
    """The weight and what belongs to its rows, so many elements of it at a time."""
    rows = max(1, size // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        end = start + rows
        yield (weight[start:end], *(None if item is None else item[start:end] for item in others))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


KERNELS: dict[str, Callable[..., Any]] = {
    "linear_w8a16": linear_w8a16,
    "linear_w8a8": linear_w8a8,
    "linear_w4a16": linear_w4a16,
}
