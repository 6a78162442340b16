"""Groups over BKCL, Kunlun's own library, between the memories of XPUs. Not yet run on hardware.

BKCL has no all_to_all, which is the part of a whole gathering here, and no query of what is under
way: work is done when it was waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle.base import core

from sagellm_backend.collectives import ReduceOp, Work
from sagellm_backend.errors import CommError
from sagellm_backend.kunlun.communicator import KunlunCommunicator

if TYPE_CHECKING:
    from sagellm_backend.kunlun.provider import KunlunProvider


class TaskWork(Work):
    """A task of BKCL. The host waits for the device, so that what comes next may run anywhere."""

    def __init__(
        self,
        group: BkclCommunicator,
        operation: str,
        task: Any,
        arrays: tuple[Any, ...],
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._group, self._operation = group, operation
        self._task, self._arrays, self._finish = task, arrays, finish
        self.found: list[bytes] = []

    def done(self) -> bool:
        return self._task is None

    def wait(self, timeout_s: float | None = None) -> None:
        del timeout_s  # BKCL ends by its own limit
        if self._task is None:
            return
        provider = self._group.provider
        try:
            with provider.launcher.on(provider.config.device):
                self._task.wait()
                provider.runtime.synchronize(provider.config.device)
                if self._finish is not None:
                    self._finish()
        except (RuntimeError, ValueError) as error:
            failure = CommError(
                f"{self._operation} failed on rank {self._group.rank} of "
                f"{self._group.world_size}: {error}",
                hint="Read the logs of the other ranks, close this communicator and join anew.",
            )
            self._group.fail(failure)
            raise failure from error
        finally:
            self._task, self._finish, self._arrays = None, None, ()


class BkclCommunicator(KunlunCommunicator):
    """A group whose data go from device to device."""

    def __init__(
        self,
        provider: KunlunProvider,
        store: Any,
        rank: int,
        world_size: int,
        group: int,
        timeout_s: float,
    ) -> None:
        super().__init__(provider, store, rank, world_size, group, timeout_s)
        core.CommContextManager.set_device_id(provider.config.device)
        self._pg = core.ProcessGroupBKCL.create(store, rank, world_size, group)
        self._lines(b"").wait()

    def _task(
        self,
        operation: str,
        call: Callable[[], Any],
        arrays: tuple[Any, ...],
        finish: Callable[[], None] | None = None,
    ) -> TaskWork:
        provider = self.provider
        provider.synchronize()  # BKCL has a stream of its own, which knows none of ours
        with provider.launcher.on(provider.config.device):
            return TaskWork(self, operation, call(), arrays, finish)

    def _lines(self, mine: bytes) -> TaskWork:
        own = np.frombuffer(mine or b"\0", np.int8).copy()
        line = self.provider.from_numpy(own)
        rows = self.provider.empty((self.world_size, own.size), "int8")
        work = self._task(
            "barrier",
            lambda: self._pg.all_gather_into_tensor(rows, line, False),
            (line, rows),
            lambda: work.found.extend(row.tobytes() for row in self.provider.to_numpy(rows)),
        )
        return work

    def _reduce(self, array: Any, op: ReduceOp) -> Work:
        return self._task(
            "all_reduce",
            lambda: self._pg.all_reduce(array, _reduction(op), False),
            (array,),
            self._average(array, op),
        )

    def _scatter(self, array: Any, out: Any, op: ReduceOp) -> Work:
        return self._task(
            "reduce_scatter",
            lambda: self._pg.reduce_scatter_tensor(out, array, _reduction(op), False),
            (array, out),
            self._average(out, op),
        )

    def _gather(self, array: Any, out: Any) -> Work:
        return self._task(
            "all_gather",
            lambda: self._pg.all_gather_into_tensor(out, array, False),
            (array, out),
        )

    def _exchange(self, array: Any, out: Any) -> Work:
        whole = self.provider.empty((self.world_size, *array.shape), array.dtype)

        def take() -> None:
            for peer in range(self.world_size):
                out[peer].copy_(whole[peer, self.rank], True)

        return self._task(
            "all_to_all",
            lambda: self._pg.all_gather_into_tensor(whole, array, False),
            (array, whole, out),
            take,
        )

    def _spread(self, array: Any, root: int) -> Work:
        return self._task("broadcast", lambda: self._pg.broadcast(array, root, False), (array,))

    def _give(self, array: Any, peer: int) -> Work:
        return self._task(
            f"send to rank {peer}", lambda: self._pg.send(array, peer, False), (array,)
        )

    def _take(self, array: Any, peer: int) -> Work:
        return self._task(
            f"recv from rank {peer}", lambda: self._pg.recv(array, peer, False), (array,)
        )

    def _leave(self) -> None:
        self._pg = None

    def _average(self, array: Any, op: ReduceOp) -> Callable[[], None] | None:
        if op is not ReduceOp.AVG:
            return None
        return lambda: paddle.assign(paddle.scale(array, 1 / self.world_size), output=array)


def _reduction(op: ReduceOp) -> Any:
    word = {ReduceOp.AVG: "SUM", ReduceOp.PROD: "PRODUCT"}.get(op, op.name)
    return getattr(core.ReduceOp, word)
