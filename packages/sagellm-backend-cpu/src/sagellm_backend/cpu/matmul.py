"""Products of matrices with the checks that torch does not make itself."""

from __future__ import annotations

import torch
from torch import Tensor

from sagellm_backend.torch_support import kernels
from sagellm_backend.torch_support.misuse import FLOATING

_mm = torch.mm


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """See the operation's table."""
    # mm refuses other dimensions, dtypes and sizes of b; each look at a tensor costs 70 ns.
    if a.dim() == 2 and a.dtype in FLOATING and b.numel():
        return _mm(a, b)
    return kernels.matmul(a, b)
