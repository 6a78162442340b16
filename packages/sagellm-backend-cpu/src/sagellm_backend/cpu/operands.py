"""Which tensors compiled code may read and write by their addresses, and by which kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from sagellm_backend.cpu import capturing
from sagellm_backend.cpu.compiled.kernel import Kernel

_PLAIN = (Tensor, Parameter)
_grad_enabled = torch.is_grad_enabled


def on_host(*tensors: Tensor) -> bool:
    """Whether these lie in this machine's memory, and no gradient is to be recorded of them.

    Subclasses of tensors may mean anything by their elements, and are left to torch. Layouts without
    strides, and tensors of torch.func, show in a :class:`RuntimeError` of ``data_ptr()``.
    """
    if capturing.recording is not None:
        capturing.touch(tensors)
    recorded = _grad_enabled()
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not tensor.is_cpu or (recorded and tensor.requires_grad):
            return False
    return True


def addressable(*tensors: Tensor) -> bool:
    """Whether these are :func:`on_host`, and strided."""
    return on_host(*tensors) and all(tensor.layout is torch.strided for tensor in tensors)


def kernels_of(module: str) -> dict[torch.dtype, Kernel]:
    """The kernels of a module of ``compiled``, by the dtype of their tensors."""
    return {
        torch.float32: Kernel(module, "fp32"),
        torch.float16: Kernel(module, "fp16"),
        torch.bfloat16: Kernel(module, "bf16"),
    }
