"""Products of two matrices without the guard's Python call, a tenth of what the smallest take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_mm = torch.mm
_FP32, _FP16, _BF16 = torch.float32, torch.float16, torch.bfloat16


def shortcut(guarded: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of the guarded kernel the one that callers get: all else, and all misuse, is left to that."""

    def matmul(a: Tensor, b: Tensor) -> Tensor:
        # mm refuses other dimensions and sizes, and dtypes that differ; each look costs 40 to 70 ns,
        # and to find a dtype in a set as much again.
        try:
            product = _mm(a, b)
        except Exception:  # noqa: BLE001 - the guarded kernel says what is wrong
            return guarded(a, b)
        dtype = product.dtype
        if (dtype is _FP32 or dtype is _BF16 or dtype is _FP16) and b.numel():
            return product
        return guarded(a, b)

    return matmul
