"""Products of matrices with the checks that torch does not make itself."""

from __future__ import annotations

import torch
from torch import Tensor

from sagellm_backend.torch_support import kernels

_mm = torch.mm
_FP32, _FP16, _BF16 = torch.float32, torch.float16, torch.bfloat16


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """See the operation's table."""
    # mm refuses other dimensions and sizes, and dtypes that differ; each look costs 40 to 70 ns, and
    # to find a dtype in a set as much again.
    try:
        product = _mm(a, b)
    except (RuntimeError, TypeError):
        return kernels.matmul(a, b)
    dtype = product.dtype
    if (dtype is _FP32 or dtype is _BF16 or dtype is _FP16) and b.numel():
        return product
    return kernels.matmul(a, b)
