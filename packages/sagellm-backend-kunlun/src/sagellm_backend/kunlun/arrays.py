"""Tensors and host arrays: dtypes both ways, copies both ways, and whose memory a tensor is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from sagellm_backend.dtypes import DType

PADDLE_DTYPES: dict[DType, Any] = {
    DType.FP32: paddle.float32,
    DType.FP16: paddle.float16,
    DType.BF16: paddle.bfloat16,
    DType.FP8: paddle.float8_e4m3fn,
    DType.INT8: paddle.int8,
    DType.INT32: paddle.int32,
    DType.INT64: paddle.int64,
}
"""The dtypes that tensors can have."""

# NumPy does not know bf16 and fp8: these cross as integers of their width.
_CARRIERS = {DType.BF16: np.int16, DType.FP8: np.int8}
_HOST, _FIRST = 1, 0  # DLPack's kDLCPU, and the index of its only device


class KunlunArray(paddle.Tensor):  # type: ignore[misc]
    """A Paddle tensor made by ``empty`` or ``from_numpy``; what kernels return is plain Paddle.

    Paddle gives no sign when memory is released, so this object stands for it: its memory counts
    until it and every view of ``reshape`` are gone. A view made by another method of Paddle keeps
    the memory alive but not the count.
    """

    _memory: KunlunArray

    def reshape(self, *shape: Any, **words: Any) -> Any:
        """The same elements in another shape: a view where that is possible."""
        found: Any = super().reshape(*shape, **words)
        if not found._is_shared_buffer_with(self):  # noqa: SLF001 - Paddle has no public word for it
            return found
        view = KunlunArray(found)
        view._memory = self
        return view

    def __dlpack_device__(self) -> tuple[Any, int]:
        kind, index = super().__dlpack_device__()
        return kind, _FIRST if index is None else int(index)  # Paddle says None of the CPU


def dtype_of(tensor: Any) -> DType:
    """Our dtype of a tensor. Raises :class:`InvalidArgumentError` for one that is none of ours."""
    return DType.parse(tensor.dtype)


def as_tensor(array: npt.NDArray[Any]) -> Any:
    """A CPU tensor over the memory of a contiguous host array."""
    dtype = DType.parse(array.dtype)
    flat = array.reshape(-1)
    # What has one element may have any stride, by which Paddle takes it for scattered.
    if not array.flags.writeable or flat.strides != (flat.itemsize,):
        flat = flat.copy()
    carrier = _CARRIERS.get(dtype)
    if carrier is None:
        return paddle.from_dlpack(flat).view(list(array.shape))
    tensor = paddle.from_dlpack(flat.view(carrier)).view(PADDLE_DTYPES[dtype])
    return tensor.view(list(array.shape))


def overwrite(tensor: Any, values: npt.NDArray[Any]) -> None:
    """Copy host values of equal shape and dtype over a tensor, however it lies in memory."""
    host = as_tensor(values)
    if tensor.is_contiguous():
        tensor.copy_(host, True)
        return
    # Strided writes have no fp8, and not all places have the other narrow types.
    carrier = {DType.BF16: "int16", DType.FP8: "int8"}.get(dtype_of(tensor))
    if carrier:
        tensor, host = tensor.view(carrier), host.view(carrier)
    moved = paddle.empty(host.shape, host.dtype, device=tensor.place)
    moved.copy_(host, True)
    tensor[...] = moved


def to_numpy(tensor: Any) -> npt.NDArray[Any]:
    """A host copy; waits for the work of the current stream.

    Raises :class:`InvalidArgumentError` for dtypes that NumPy does not have.
    """
    dtype = dtype_of(tensor)
    # Not by way of contiguous(): that gives the tensor itself another memory, apart from its base.
    found = np.array(tensor.numpy())
    return found if dtype not in _CARRIERS else found.view(dtype.numpy)


def speaks_dlpack(tensor: Any) -> bool:
    """Whether a tensor says where it lies, as consumers ask first, and gives a capsule."""
    try:
        tensor.__dlpack_device__()
        tensor.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError):
        return False
    return True
