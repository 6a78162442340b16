"""A group of processes: what its ranks agree about, whatever carries their data."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sagellm_backend.collectives import Communicator, ReduceOp, Work
from sagellm_backend.errors import CapabilityError, CommError, ErrorCode, UnavailableError
from sagellm_backend.kunlun.arrays import dtype_of
from sagellm_backend.kunlun.comm_local import KunlunArrayCommunicator, LocalCommunicator
from sagellm_backend.kunlun.comm_work import DoneWork

if TYPE_CHECKING:
    from sagellm_backend.kunlun.provider import KunlunProvider

CHECK_VARIABLE = "SAGELLM_CHECK_COLLECTIVES"
_CHECK_BYTES = 256


class KunlunCommunicator(KunlunArrayCommunicator):
    """A process group of Paddle, over a store of its own; Paddle's global groups are not touched.

    Arrays without elements are a no-op that sends nothing. Data movement takes any dtype; reductions
    take fp32, fp16, bf16 and integers, raise :class:`CapabilityError` for fp8 and for the bitwise
    ones. ``avg`` adds, then divides. Every rank gets the same bits of a reduction.

    After a collective has failed the group is unusable (:class:`UnavailableError` names the first
    failure); close it and join anew. Closing closes the subgroups too.

    Ranks that disagree about shape, dtype, reduction or the order of calls break the contract. With
    the environment variable ``SAGELLM_CHECK_COLLECTIVES=1`` on all ranks every collective (not send
    and recv) first compares what the ranks are about to do, and raises :class:`CommError` on every
    rank with what each one called; nothing is sent then, and the group stays usable.
    """

    def __init__(
        self,
        provider: KunlunProvider,
        store: Any,
        rank: int,
        world_size: int,
        group: int,
        timeout_s: float,
    ) -> None:
        super().__init__(provider, rank, world_size, timeout_s)
        self._store = store
        self._number = group
        self._subgroups = 0
        self._children: WeakSet[Communicator] = WeakSet()
        self._failure: CommError | None = None
        self._checked = os.environ.get(CHECK_VARIABLE, "0") not in {"", "0"}

    def fail(self, error: CommError) -> None:
        """Note the failure that made the group unusable."""
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
        self._check_reduction(op, array)
        work = self._start(
            f"all_reduce {op.value}", array, lambda: self._reduce(array, op), async_op
        )
        return work if async_op else array

    def _all_gather(self, array: Any, async_op: bool) -> Any:
        out = self.provider.empty((self.world_size, *array.shape), dtype_of(array))
        work = self._start("all_gather", array, lambda: self._gather(array, out), async_op)
        return (work, out) if async_op else out

    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        self._check_reduction(op, array)
        shape = (array.shape[0] // self.world_size, *array.shape[1:])
        out = self.provider.empty(shape, dtype_of(array))
        work = self._start(
            f"reduce_scatter {op.value}", array, lambda: self._scatter(array, out, op), async_op
        )
        return (work, out) if async_op else out

    def _broadcast(self, array: Any, root: int, async_op: bool) -> Any:
        work = self._start(
            f"broadcast from {root}", array, lambda: self._spread(array, root), async_op
        )
        return work if async_op else array

    def _all_to_all(self, array: Any, async_op: bool) -> Any:
        out = self.provider.empty(tuple(array.shape), dtype_of(array))
        work = self._start("all_to_all", array, lambda: self._exchange(array, out), async_op)
        return (work, out) if async_op else out

    def _send(self, array: Any, peer: int) -> None:
        if array.size:
            self._give(array, peer).wait()

    def _recv(self, array: Any, peer: int) -> Any:
        if array.size:
            self._take(array, peer).wait()
        return array

    def _barrier(self) -> None:
        self._compare("barrier")
        self._lines(b"").wait()

    def _subgroup(self, ranks: list[int]) -> Communicator | None:
        self._compare(f"subgroup {ranks}")
        self._subgroups += 1  # alike on all ranks, who make the same calls
        if self.rank not in ranks:
            return None
        if len(ranks) == 1:
            made: Communicator = LocalCommunicator(self.provider, self.timeout_s)
        else:
            number = (self._number * 64 + self._subgroups) % (1 << 30)
            made = type(self)(
                self.provider,
                self._store,
                ranks.index(self.rank),
                len(ranks),
                number,
                self.timeout_s,
            )
        self._children.add(made)
        return made

    def _close(self) -> None:
        for child in list(self._children):
            child.close()
        self._leave()
        self._store = None

    def _check_reduction(self, op: ReduceOp, array: Any) -> None:
        self._check_reducible(op, dtype_of(array))
        self._check_known(op)

    def _start(self, operation: str, array: Any, call: Callable[[], Work], async_op: bool) -> Work:
        self._compare(f"{operation} {dtype_of(array).value} {tuple(array.shape)}")
        if not array.size:
            return DoneWork()
        work = call()
        if not async_op:
            work.wait()
        return work

    def _compare(self, text: str) -> None:
        if not self._checked:
            return
        lines = self._lines(text.encode()[:_CHECK_BYTES].ljust(_CHECK_BYTES))
        lines.wait()
        calls = [line.decode().strip() for line in lines.found]
        if len(set(calls)) > 1:
            listed = "; ".join(f"rank {rank}: {call}" for rank, call in enumerate(calls))
            raise CommError(
                f"The ranks disagree about what to do. {listed}.",
                hint="Every rank must make the same calls in the same order; nothing was sent.",
                code=ErrorCode.COMM_RANK_MISMATCH,
            )

    @abstractmethod
    def _lines(self, mine: bytes) -> Any:
        """Work whose ``found`` is the bytes of every rank, equally many, when it was waited for."""

    @abstractmethod
    def _reduce(self, array: Any, op: ReduceOp) -> Work: ...

    @abstractmethod
    def _gather(self, array: Any, out: Any) -> Work: ...

    @abstractmethod
    def _scatter(self, array: Any, out: Any, op: ReduceOp) -> Work: ...

    @abstractmethod
    def _spread(self, array: Any, root: int) -> Work: ...

    @abstractmethod
    def _exchange(self, array: Any, out: Any) -> Work: ...

    @abstractmethod
    def _give(self, array: Any, peer: int) -> Work: ...

    @abstractmethod
    def _take(self, array: Any, peer: int) -> Work: ...

    @abstractmethod
    def _leave(self) -> None: ...


def refuse_backend(provider: str, word: str) -> CapabilityError:
    """The error for a Paddle that was built without a library."""
    return CapabilityError(
        f"collectives over {word}", provider, "this Paddle was built without it."
    )
