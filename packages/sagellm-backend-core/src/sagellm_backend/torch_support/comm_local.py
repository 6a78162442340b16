"""What all communicators over torch check, and the communicator of a process that is alone."""

from __future__ import annotations

from typing import Any

import torch

from sagellm_backend.collectives import Communicator, ReduceOp
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.torch_support.comm_work import DoneWork

BITWISE = frozenset({ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR})
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_INTEGERS = frozenset({torch.int64, torch.int32, torch.int8, torch.uint8})


class TorchArrayCommunicator(Communicator):
    """A communicator whose arrays are torch tensors on one device. ``provider`` names it in errors."""

    def __init__(
        self, provider: str, device: torch.device, rank: int, world_size: int, timeout_s: float
    ) -> None:
        super().__init__(rank, world_size, timeout_s)
        self.provider = provider
        self.device = device

    def _array(self, name: str, array: Any) -> torch.Tensor:
        if not isinstance(array, torch.Tensor):
            raise InvalidArgumentError(
                f"{name} must be a torch.Tensor, not {type(array).__name__}.",
                hint="Make one with backend.from_numpy(...).",
            )
        if array.device != self.device and array.device.type != str(self.device):
            raise InvalidArgumentError(
                f"{name} is on {array.device}, and this group communicates from {self.device}.",
                hint=f"Move it with {name}.to({str(self.device)!r}).",
            )
        if array.layout is not torch.strided or not array.is_contiguous():
            raise InvalidArgumentError(
                f"{name} of shape {tuple(array.shape)} must be contiguous.",
                hint=f"Pass {name}.contiguous().",
            )
        return array

    def _check_reducible(self, op: ReduceOp, dtype: torch.dtype) -> None:
        if dtype not in _FLOATS and dtype not in _INTEGERS:
            raise CapabilityError(
                f"reduction of {dtype}",
                self.provider,
                "no library adds this type.",
                hint="Convert to bf16 or fp32 first; all_gather, broadcast, all_to_all, send and "
                "recv take any type.",
            )
        if op is ReduceOp.AVG and dtype in _INTEGERS:
            raise InvalidArgumentError(
                f"An average of {dtype} would not be an integer.", hint="Use sum, or convert first."
            )
        if op in BITWISE and dtype in _FLOATS:
            raise InvalidArgumentError(
                f"{op.value} is for integers, not {dtype}.", hint="View the bits as int32 or int8."
            )


class LocalCommunicator(TorchArrayCommunicator):
    """A group of one: every collective is the identity, and no network is touched."""

    def __init__(self, provider: str, device: torch.device, timeout_s: float) -> None:
        super().__init__(provider, device, 0, 1, timeout_s)

    def _all_reduce(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        self._check_reducible(op, array.dtype)
        return DoneWork() if async_op else array

    def _all_gather(self, array: Any, async_op: bool) -> Any:
        return self._made(array.detach().unsqueeze(0).clone(), async_op)

    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        self._check_reducible(op, array.dtype)
        return self._made(array.detach().clone(), async_op)

    def _broadcast(self, array: Any, root: int, async_op: bool) -> Any:
        del root
        return DoneWork() if async_op else array

    def _all_to_all(self, array: Any, async_op: bool) -> Any:
        return self._made(array.detach().clone(), async_op)

    def _send(self, array: Any, peer: int) -> None:
        raise NotImplementedError  # a group of one has no other rank: refused before

    def _recv(self, array: Any, peer: int) -> Any:
        raise NotImplementedError

    def _barrier(self) -> None:
        pass

    def _subgroup(self, ranks: list[int]) -> LocalCommunicator:
        del ranks
        return LocalCommunicator(self.provider, self.device, self.timeout_s)

    def _close(self) -> None:
        pass

    @staticmethod
    def _made(array: torch.Tensor, async_op: bool) -> Any:
        return (DoneWork(), array) if async_op else array


__all__ = ["BITWISE", "LocalCommunicator", "TorchArrayCommunicator"]
