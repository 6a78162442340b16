"""A provider over torch: everything but the device's own memory, streams and fast kernels."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt
import torch

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.collectives import Communicator
from sagellm_backend.dtypes import DType
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVCopyPlan, KVLayout, KVPool
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.torch_support import attention, kernels
from sagellm_backend.torch_support.arrays import TORCH_DTYPES, as_tensor, to_numpy
from sagellm_backend.torch_support.engine import EngineMethods
from sagellm_backend.torch_support.errors import check
from sagellm_backend.torch_support.kv import TorchKVCopyPlan, TorchKVPool

if TYPE_CHECKING:  # torch.distributed is loaded by those who use it
    from sagellm_backend.torch_support.communicator import TorchCommunicator


class TorchProvider(EngineMethods):
    """Arrays are tensors. A subclass says which device, and gives memory on it."""

    array_framework = "torch"
    comm_backend: ClassVar[str]
    """The backend word of torch.distributed: ``gloo``, ``nccl``, ``hccl``."""
    compute_dtypes: ClassVar[tuple[DType, ...]] = (DType.FP32, DType.FP16, DType.BF16)
    """The dtypes that every operation computes in."""

    @abstractmethod
    def _allocate(self, nbytes: int, place: Place, alignment: int) -> torch.Tensor:
        """Uninitialised memory as an uint8 tensor that starts at a multiple of ``alignment``.

        Charged to nobody.
        """

    @abstractmethod
    def _allocate_charged(self, nbytes: int, place: Place) -> torch.Tensor:
        """Uninitialised memory, charged as ``other`` until its storage dies."""

    def torch_device(self, device: str) -> torch.device:
        """The torch device behind one of our device strings; others are refused."""
        return torch.device(self._place(device).device)

    def _array_dtypes(self) -> tuple[DType, ...]:
        return tuple(TORCH_DTYPES)

    def _is_native(self, array: Any) -> bool:
        return (
            isinstance(array, torch.Tensor)
            and array.device.type == self.device_type
            and plain(array)
        )

    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> torch.Tensor:
        elements = 1
        for size in shape:
            elements *= size
        memory = self._allocate_charged(dtype.nbytes(elements), place)
        return memory.view(TORCH_DTYPES[dtype]).view(shape)

    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> torch.Tensor:
        tensor = self._empty(array.shape, DType.parse(array.dtype), place)
        self._write_back(tensor, array)
        return tensor

    def _to_numpy(self, array: torch.Tensor) -> npt.NDArray[Any]:
        with check("to_numpy", str(array.device)):
            return to_numpy(array)

    def _write_back(self, array: torch.Tensor, values: npt.NDArray[Any]) -> None:
        with check("copy from host", str(array.device), values.nbytes):
            array.copy_(as_tensor(values))

    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        memory = self._allocate(layout.nbytes(num_blocks), place, layout.alignment)
        return TorchKVPool(self, layout, num_blocks, place.location, place.device, memory)

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return TorchKVCopyPlan(source, target)

    def _register_kernels(self, table: KernelTable) -> None:
        kernels.register(table, self._supports, kernels.KERNELS)

    def _supports(self, dtype: DType | None = None, **_: Any) -> list[str]:
        if dtype is None or dtype in self.compute_dtypes:
            return []
        offered = ", ".join(item.value for item in self.compute_dtypes)
        return [f"dtype {dtype.value} is not computed in, only {offered}"]

    def _prepare_attention(self, metadata: AttentionMetadata) -> None:
        attention.prepare(metadata, self.torch_device(self.device))

    def _communicator(
        self, rank: int | None, world_size: int | None, init_method: str | None, timeout_s: float
    ) -> Communicator:
        return self._join(rank, world_size, init_method, timeout_s)

    def _join(
        self,
        rank: int | None,
        world_size: int | None,
        init_method: str | None,
        timeout_s: float,
        kind: type[TorchCommunicator] | None = None,
    ) -> Communicator:
        from sagellm_backend.torch_support import collectives

        return collectives.join(
            self.name,
            self.comm_backend,
            self.torch_device(self.device),
            rank,
            world_size,
            init_method,
            timeout_s,
            kind or collectives.TorchCommunicator,
        )


def plain(array: torch.Tensor) -> bool:
    """Whether a tensor is neither sparse nor quantised nor nested: what kernels and copies take."""
    return array.layout is torch.strided and not (array.is_quantized or array.is_nested)
