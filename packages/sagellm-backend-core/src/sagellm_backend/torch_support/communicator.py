"""A group of processes over torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist

from sagellm_backend.collectives import Communicator, ReduceOp, Work
from sagellm_backend.errors import (
    CapabilityError,
    CommError,
    ErrorCode,
    UnavailableError,
)
from sagellm_backend.torch_support.comm_errors import comm_errors
from sagellm_backend.torch_support.comm_groups import destroy, settle
from sagellm_backend.torch_support.comm_local import (
    BITWISE,
    LocalCommunicator,
    TorchArrayCommunicator,
)
from sagellm_backend.torch_support.comm_work import DoneWork, TorchWork

CHECK_VARIABLE = "SAGELLM_CHECK_COLLECTIVES"
_REDUCTIONS = {
    ReduceOp.SUM: dist.ReduceOp.SUM,
    ReduceOp.MAX: dist.ReduceOp.MAX,
    ReduceOp.MIN: dist.ReduceOp.MIN,
    ReduceOp.PROD: dist.ReduceOp.PRODUCT,
    ReduceOp.BAND: dist.ReduceOp.BAND,
    ReduceOp.BOR: dist.ReduceOp.BOR,
    ReduceOp.BXOR: dist.ReduceOp.BXOR,
    ReduceOp.AVG: dist.ReduceOp.SUM,  # and divided here: not every library can average
}
# torch 2.13 renamed these two, and warns of the old names.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_CHECK_BYTES = 256


class TorchCommunicator(TorchArrayCommunicator):
    """A process group of torch.distributed. Made by :func:`.collectives.join`.

    Arrays without elements are a no-op that sends nothing. Data movement (all_gather, broadcast,
    all_to_all, send, recv) sends bytes, so any dtype will do; reductions take fp64, fp32, fp16,
    bf16 and integers, raise :class:`CapabilityError` for fp8, and wrap around on integer overflow.
    ``avg`` adds, then divides. Every rank gets the same bits of a reduction.

    After a collective has failed the group is unusable (:class:`UnavailableError` names the first
    failure); close it and join anew. Closing waits, at most for the timeout, for collectives under
    way, and closes the subgroups too; of a group that has failed it raises nothing.

    Ranks that disagree about shape, dtype, reduction or the order of calls break the contract, and
    no library detects it reliably: gloo ends a process (SIGABRT) that receives more than it
    expects, and gives wrong numbers, silently, where sizes happen to fit. With the environment
    variable ``SAGELLM_CHECK_COLLECTIVES=1`` on all ranks every collective (not send and recv)
    first compares what the ranks are about to do, at the price of one small all_gather, and raises
    :class:`CommError` on every rank with what each one called; nothing is sent then, and the group
    stays usable.
    """

    def __init__(
        self,
        provider: str,
        backend: str,
        device: torch.device,
        group: Any,
        ranks: list[int],
        timeout_s: float,
        leave: Callable[[Any], None],
    ) -> None:
        super().__init__(provider, device, ranks.index(dist.get_rank()), len(ranks), timeout_s)
        self.backend = backend
        self._group = group
        self._ranks = ranks
        self._children: WeakSet[Communicator] = WeakSet()
        self._failure: CommError | None = None
        self._leave = leave
        self._checked = os.environ.get(CHECK_VARIABLE, "0") not in {"", "0"}

    @staticmethod
    def creating() -> AbstractContextManager[None]:
        """A context in which process groups of this kind are made."""
        return nullcontext()

    @staticmethod
    def options(timeout_s: float) -> Any:
        """What torch.distributed is told of a group of this kind beside its timeout, if anything."""
        del timeout_s

    def errors(self, operation: str) -> AbstractContextManager[None]:
        """A context in which an error of torch.distributed makes this group unusable."""
        return comm_errors(operation, self.rank, self.world_size, self.timeout_s, self._fail)

    def _fail(self, error: CommError) -> None:
        self._failure = self._failure or error

    def _require_open(self) -> None:
        super()._require_open()
        if self._failure is not None:
            raise UnavailableError(
                f"This group of {self.world_size} processes cannot be used any more: "
                f"{self._failure.message}",
                hint="Close it, and join a new one.",
            )

    def _all_reduce(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        reduction, finish = self._reduction(op, array)
        call = partial(dist.all_reduce, array.detach(), op=reduction, group=self._group)
        work = self._start("all_reduce", op.value, array, call, (array,), async_op, finish)
        return work if async_op else array

    def _all_gather(self, array: Any, async_op: bool) -> Any:
        out = array.new_empty((self.world_size, *array.shape))
        work = self._gather("all_gather", "", array, out, async_op)
        return (work, out) if async_op else out

    def _gather(
        self,
        operation: str,
        detail: str,
        array: torch.Tensor,
        out: torch.Tensor,
        async_op: bool,
        finish: Callable[[], object] | None = None,
    ) -> Work:
        call = partial(_gather_into, _bytes(out), _bytes(array), group=self._group)
        return self._start(operation, detail, array, call, (array, out), async_op, finish)

    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        out = array.new_empty((array.shape[0] // self.world_size, *array.shape[1:]))
        reduction, finish = self._reduction(op, out)
        call = partial(_scatter_into, out, array.detach(), op=reduction, group=self._group)
        work = self._start("reduce_scatter", op.value, array, call, (array, out), async_op, finish)
        return (work, out) if async_op else out

    def _broadcast(self, array: Any, root: int, async_op: bool) -> Any:
        call = partial(dist.broadcast, _bytes(array), src=self._ranks[root], group=self._group)
        work = self._start("broadcast", f"from {root}", array, call, (array,), async_op)
        return work if async_op else array

    def _all_to_all(self, array: Any, async_op: bool) -> Any:
        out = torch.empty_like(array)
        call = partial(dist.all_to_all_single, _bytes(out), _bytes(array), group=self._group)
        work = self._start("all_to_all", "", array, call, (array, out), async_op)
        return (work, out) if async_op else out

    def _send(self, array: Any, peer: int) -> None:
        if array.numel():
            with self.errors(f"send to rank {peer}"):
                dist.send(_bytes(array), dst=self._ranks[peer], group=self._group)

    def _recv(self, array: Any, peer: int) -> Any:
        if array.numel():
            with self.errors(f"recv from rank {peer}"):
                dist.recv(_bytes(array), src=self._ranks[peer], group=self._group)
        return array

    def _barrier(self) -> None:
        self._compare("barrier")
        devices = None if self.device.type == "cpu" else [self.device.index or 0]
        with self.errors("barrier"):
            dist.barrier(group=self._group, device_ids=devices)

    def _subgroup(self, ranks: list[int]) -> Communicator | None:
        self._compare(f"subgroup {ranks}")
        mine = self.rank in ranks
        if len(ranks) == 1:
            return self._adopt(LocalCommunicator(*self._place())) if mine else None
        if self.world_size != dist.get_world_size():
            raise CapabilityError(
                "subgroup of a subgroup",
                self.provider,
                "torch.distributed names groups by a count that every process must share.",
                hint="Make it from the communicator of all ranks, with all of them calling.",
            )
        members = [self._ranks[rank] for rank in ranks]
        create = partial(
            dist.new_group,
            members,
            timedelta(seconds=self.timeout_s),
            self.backend,
            pg_options=self.options(self.timeout_s),
        )
        if members != sorted(members):
            create = partial(create, sort_ranks=False)  # newer than new_group: where it matters
        with self.errors(f"subgroup {ranks}"), self.creating():
            group = create()
            if mine:
                settle(group)
        if not mine:
            return None
        return self._adopt(
            type(self)(
                self.provider,
                self.backend,
                self.device,
                group,
                members,
                self.timeout_s,
                destroy,
            )
        )

    def _close(self) -> None:
        for child in list(self._children):
            child.close()
        failed = self._failure is not None  # then a library may well fail to end what it began
        with suppress(RuntimeError) if failed else self.errors("close"):
            self._leave(self._group)
        self._group = None

    def _place(self) -> tuple[str, torch.device, float]:
        return self.provider, self.device, self.timeout_s

    def _adopt(self, child: Communicator) -> Communicator:
        self._children.add(child)
        return child

    def _reduction(
        self, op: ReduceOp, result: torch.Tensor
    ) -> tuple[Any, Callable[[], object] | None]:
        self._check_reducible(op, result.dtype)
        if op in BITWISE and self.backend != "gloo":
            raise CapabilityError(
                f"all_reduce {op.value}",
                self.provider,
                f"{self.backend} has no bitwise reductions.",
                hint="Use all_gather and combine, or reduce on the CPU.",
            )
        average = op is ReduceOp.AVG
        return _REDUCTIONS[op], partial(_divide, result, self.world_size) if average else None

    def _start(
        self,
        operation: str,
        detail: str,
        array: torch.Tensor,
        call: Callable[..., Any],
        tensors: tuple[torch.Tensor, ...],
        async_op: bool,
        finish: Callable[[], object] | None = None,
    ) -> Work:
        self._compare(f"{operation} {detail} {array.dtype} {tuple(array.shape)}")
        if not array.numel():
            return DoneWork()
        with self.errors(operation):
            handle = call(async_op=async_op)
        if async_op:
            return TorchWork(self, operation, handle, tensors, finish)
        if finish is not None:
            finish()
        return DoneWork()

    def _compare(self, text: str) -> None:
        if not self._checked:
            return
        mine = text.encode()[:_CHECK_BYTES].ljust(_CHECK_BYTES)
        line = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(self.device)
        lines = line.new_empty((self.world_size * _CHECK_BYTES,))
        with self.errors("comparison of calls"):
            _gather_into(lines, line, group=self._group)
        calls = [bytes(row).decode().strip() for row in lines.reshape(self.world_size, -1).tolist()]
        if len(set(calls)) > 1:
            listed = "; ".join(f"rank {rank}: {call}" for rank, call in enumerate(calls))
            raise CommError(
                f"The ranks disagree about what to do. {listed}.",
                hint="Every rank must make the same calls in the same order; nothing was sent.",
                code=ErrorCode.COMM_RANK_MISMATCH,
            )


def _bytes(array: torch.Tensor) -> torch.Tensor:
    return array.detach().reshape(-1).view(torch.uint8)


def _divide(array: torch.Tensor, world_size: int) -> None:
    array.detach().div_(world_size)


__all__ = ["CHECK_VARIABLE", "TorchCommunicator"]
