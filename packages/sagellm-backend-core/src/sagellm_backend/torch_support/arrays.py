"""Tensors and host arrays: dtypes both ways, copies both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError

TORCH_DTYPES: dict[DType, torch.dtype] = {
    DType.FP32: torch.float32,
    DType.FP16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.FP8: torch.float8_e4m3fn,
    DType.INT8: torch.int8,
    DType.INT32: torch.int32,
    DType.INT64: torch.int64,
}
"""The dtypes that tensors can have. torch has no arithmetic int4."""

# NumPy does not know bf16 and fp8: these cross as integers of their width.
_CARRIERS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.int8}


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A host copy; waits for the tensor's device if it is not the CPU.

    Raises :class:`InvalidArgumentError` for dtypes that NumPy does not have.
    """
    host = tensor.detach().cpu().contiguous()
    carrier = _CARRIERS.get(host.dtype)
    if carrier is None:
        try:
            return np.array(host.numpy())
        except TypeError as error:
            raise InvalidArgumentError(f"NumPy has no arrays of {host.dtype}.") from error
    return np.array(host.view(carrier).numpy()).view(DType.parse(host.dtype).numpy)


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """A CPU tensor over the memory of a contiguous host array."""
    dtype = TORCH_DTYPES[DType.parse(array.dtype)]
    carrier = _CARRIERS.get(dtype)
    if not array.flags.writeable:
        array = array.copy()
    if carrier is None:
        return torch.from_numpy(array)
    plain = array.view(np.int16 if carrier is torch.int16 else np.int8)
    return torch.from_numpy(plain).view(dtype)


def speaks_dlpack(device: torch.device) -> bool:
    """Whether tensors of ``device`` say where they lie, as consumers ask first, and give a capsule.

    torch 2.13 gives capsules of PrivateUse1 devices and does not know where they lie.
    """
    tensor = torch.empty(1, device=device)
    try:
        tensor.__dlpack_device__()
        tensor.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError):
        return False
    return True
