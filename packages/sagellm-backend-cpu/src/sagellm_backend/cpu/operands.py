"""Which tensors compiled code may read and write by their addresses, and by which kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from sagellm_backend.cpu.compiled.kernel import Kernel

_PLAIN = (Tensor, Parameter)
_grad_enabled = torch.is_grad_enabled


def addressable(*tensors: Tensor) -> bool:
    """Whether these lie in this machine's memory, and no gradient is to be recorded of them.

    Subclasses of tensors may mean anything by their elements, and are left to torch.
    """
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.layout is not torch.strided:
            return False
    return not (_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def kernels_of(module: str) -> dict[torch.dtype, Kernel]:
    """The kernels of a module of ``compiled``, by the dtype of their tensors."""
    return {
        torch.float32: Kernel(module, "fp32"),
        torch.float16: Kernel(module, "fp16"),
        torch.bfloat16: Kernel(module, "bf16"),
    }
