"""Products of matrices with the checks that torch does not make itself."""

from __future__ import annotations

import torch
from torch import Tensor

from sagellm_backend.torch_support import kernels
from sagellm_backend.torch_support.misuse import FLOATING

_mm = torch.mm


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """See the operation's table."""
    # mm refuses other dimensions and sizes, and dtypes that differ; each look costs 40 to 70 ns.
    try:
        product = _mm(a, b)
    except (RuntimeError, TypeError):
        return kernels.matmul(a, b)
    if product.dtype in FLOATING and b.numel():
        return product
    return kernels.matmul(a, b)
