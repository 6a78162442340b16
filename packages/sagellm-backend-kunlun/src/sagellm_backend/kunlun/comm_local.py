"""What all communicators here check, and the communicator of a process that is alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paddle

from sagellm_backend.collectives import Communicator, ReduceOp
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.kunlun.arrays import dtype_of
from sagellm_backend.kunlun.comm_work import DoneWork

if TYPE_CHECKING:
    from sagellm_backend.kunlun.provider import KunlunProvider

BITWISE = frozenset({ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR})
FLOATS = frozenset({DType.FP32, DType.FP16, DType.BF16})
INTEGERS = frozenset({DType.INT8, DType.INT32, DType.INT64})


class KunlunArrayCommunicator(Communicator):
    """A communicator whose arrays are tensors on the default device of ``provider``."""

    def __init__(
        self, provider: KunlunProvider, rank: int, world_size: int, timeout_s: float
    ) -> None:
        super().__init__(rank, world_size, timeout_s)
        self.provider = provider

    def _array(self, name: str, array: Any) -> Any:
        runtime, own = self.provider.runtime, self.provider.config.device
        if not isinstance(array, paddle.Tensor):
            raise InvalidArgumentError(
                f"{name} must be a paddle.Tensor, not {type(array).__name__}.",
                hint="Make one with backend.from_numpy(...).",
            )
        if runtime.index_of(array.place) != own:
            raise InvalidArgumentError(
                f"{name} is on {array.place}, and this group communicates from "
                f"{self.provider.device}.",
                hint="Copy it there with backend.to_numpy() and from_numpy().",
            )
        dtype_of(array)
        if not array.is_contiguous():
            raise InvalidArgumentError(
                f"{name} of shape {tuple(array.shape)} must be contiguous.",
                hint="Pass paddle.clone(...) of it.",
            )
        return array

    def _check_reducible(self, op: ReduceOp, dtype: DType) -> None:
        if dtype not in FLOATS and dtype not in INTEGERS:
            raise CapabilityError(
                f"reduction of {dtype.value}",
                self.provider.name,
                "no library adds this type, and Paddle's gloo ends the process that asks it to.",
                hint="Convert to bf16 or fp32 first; all_gather, broadcast, all_to_all, send and "
                "recv take any type.",
            )
        if op is ReduceOp.AVG and dtype in INTEGERS:
            raise InvalidArgumentError(
                f"An average of {dtype.value} would not be an integer.",
                hint="Use sum, or convert first.",
            )
        if op in BITWISE and dtype in FLOATS:
            raise InvalidArgumentError(
                f"{op.value} is for integers, not {dtype.value}.", hint="Use an integer type."
            )

    def _check_known(self, op: ReduceOp) -> None:
        if op in BITWISE:
            raise CapabilityError(
                f"all_reduce {op.value}",
                self.provider.name,
                "Paddle has no bitwise reductions.",
                hint="Use all_gather and combine.",
            )

    def _copy(self, array: Any, shape: tuple[int, ...]) -> Any:
        made = self.provider.empty(shape, dtype_of(array))
        if made.size:
            with self.provider.launcher.on(self.provider.config.device):
                made.copy_(paddle.reshape(array, list(shape)), True)
        return made


class LocalCommunicator(KunlunArrayCommunicator):
    """A group of one: every collective is the identity, and no network is touched."""

    def __init__(self, provider: KunlunProvider, timeout_s: float) -> None:
        super().__init__(provider, 0, 1, timeout_s)

    def _all_reduce(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        self._check_reducible(op, dtype_of(array))
        return DoneWork() if async_op else array

    def _all_gather(self, array: Any, async_op: bool) -> Any:
        return self._made(self._copy(array, (1, *array.shape)), async_op)

    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        self._check_reducible(op, dtype_of(array))
        return self._made(self._copy(array, tuple(array.shape)), async_op)

    def _broadcast(self, array: Any, root: int, async_op: bool) -> Any:
        del root
        return DoneWork() if async_op else array

    def _all_to_all(self, array: Any, async_op: bool) -> Any:
        return self._made(self._copy(array, tuple(array.shape)), async_op)

    def _send(self, array: Any, peer: int) -> None:
        raise NotImplementedError  # a group of one has no other rank: refused before

    def _recv(self, array: Any, peer: int) -> Any:
        raise NotImplementedError

    def _barrier(self) -> None:
        pass

    def _subgroup(self, ranks: list[int]) -> LocalCommunicator:
        del ranks
        return LocalCommunicator(self.provider, self.timeout_s)

    def _close(self) -> None:
        pass

    @staticmethod
    def _made(array: Any, async_op: bool) -> Any:
        return (DoneWork(), array) if async_op else array
