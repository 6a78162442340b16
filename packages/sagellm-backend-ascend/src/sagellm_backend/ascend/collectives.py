"""Groups of processes over HCCL.

A collective waits on the host, as the contract has it, so that a peer that died or never comes is an
error and not the end of the process: torch_npu's own watchdog would abort it. Closing waits until the
device has given up what a peer left alone, so that each group tells HCCL a timeout. What a chip's HCCL
does not reduce is gathered and combined on the device, in the order of ranks. None of this has run on
an NPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from sagellm_backend.ascend import npu
from sagellm_backend.collectives import ReduceOp, Work
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.torch_support.comm_waits import WaitingCommunicator

_COMBINE: dict[ReduceOp, Callable[..., torch.Tensor]] = {
    ReduceOp.SUM: torch.add,
    ReduceOp.AVG: torch.add,
    ReduceOp.PROD: torch.mul,
    ReduceOp.MAX: torch.maximum,
    ReduceOp.MIN: torch.minimum,
    ReduceOp.BAND: torch.bitwise_and,
    ReduceOp.BOR: torch.bitwise_or,
    ReduceOp.BXOR: torch.bitwise_xor,
}
_REDUCED = (ReduceOp.SUM, ReduceOp.AVG, ReduceOp.PROD, ReduceOp.MAX, ReduceOp.MIN)


class HCCLCommunicator(WaitingCommunicator):
    """A group over HCCL, connected when it is made."""

    waits = ("TORCH_HCCL_BLOCKING_WAIT", "HCCL_BLOCKING_WAIT")
    reduces: ClassVar[frozenset[DType]] = frozenset()
    """The dtypes that the chip's HCCL reduces."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        try:
            self._barrier()  # HCCL connects at the first collective, by a timeout of its own
        except BaseException:
            with suppress(RuntimeError):  # which would hide what has failed
                self._leave(self._group)
            raise

    @staticmethod
    def options(timeout_s: float) -> Any:
        """HCCL's own timeout, in whole seconds and behind ours, so that ours names the collective.

        Without it HCCL's is that of the process, HCCL_EXEC_TIMEOUT, 1836 s where that is not set.
        """
        return npu.group_options({"hccl_exec_timeout": math.ceil(timeout_s) + 1})

    def _all_reduce(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        if self._is_reduced(op, array.dtype):
            return super()._all_reduce(array, op, async_op)
        work = self._combine("all_reduce", array, op, array.detach().copy_, async_op)
        return work if async_op else array

    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        if self._is_reduced(op, array.dtype):
            return super()._reduce_scatter(array, op, async_op)
        part = array.new_empty((array.shape[0] // self.world_size, *array.shape[1:]))

        def keep(total: torch.Tensor) -> None:
            part.copy_(total.chunk(self.world_size)[self.rank])

        work = self._combine("reduce_scatter", array, op, keep, async_op)
        return (work, part) if async_op else part

    def _is_reduced(self, op: ReduceOp, dtype: torch.dtype) -> bool:
        """Whether HCCL reduces this (HcclAllReduce: no products of bf16, no bitwise reductions)."""
        self._check_reducible(op, dtype)
        if op not in _REDUCED or (op is ReduceOp.PROD and dtype is torch.bfloat16):
            return False
        try:
            return DType.parse(dtype) in self.reduces
        except InvalidArgumentError:
            return False

    def _combine(
        self,
        operation: str,
        array: torch.Tensor,
        op: ReduceOp,
        keep: Callable[[torch.Tensor], object],
        async_op: bool,
    ) -> Work:
        """Gather the ranks' arrays and, when that is waited for, ``keep`` what they make together."""
        parts = array.new_empty((self.world_size, *array.shape))

        def finish() -> None:
            total = functools.reduce(_COMBINE[op], parts.unbind())
            keep(total.div_(self.world_size) if op is ReduceOp.AVG else total)

        return self._gather(operation, op.value, array, parts, async_op, finish)

    def _barrier(self) -> None:
        one = torch.ones(1, dtype=torch.int32, device=self.device)
        call = functools.partial(dist.all_reduce, one, group=self._group)
        self._start("barrier", "", one, call, (one,), async_op=False)
