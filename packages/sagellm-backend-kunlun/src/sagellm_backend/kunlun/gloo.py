"""Groups over Paddle's gloo, on the host: arrays of a device go through host memory.

What Paddle 3.3's gloo gets wrong is not asked of it. It adds fp16 to infinity, so half types are
reduced in fp32 and rounded once. It lacks reduce_scatter and all_to_all, which are parts of a whole
reduction and of a whole gathering here, and the average, which is the sum divided. fp8 ends the
process, so it moves as bytes and is refused where it would be added. Calls block, so a thread makes
them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import paddle
from paddle.base import core

from sagellm_backend.collectives import ReduceOp, Work
from sagellm_backend.dtypes import DType
from sagellm_backend.kunlun.comm_work import Calls, HostWork
from sagellm_backend.kunlun.communicator import KunlunCommunicator

if TYPE_CHECKING:
    from sagellm_backend.kunlun.provider import KunlunProvider

Array = npt.NDArray[Any]

_HALF = (DType.FP16, DType.BF16)
_CLOSE_S = 1.0
_environment = threading.Lock()


class Lines(HostWork):
    """Work that ends with the bytes of every rank."""

    found: list[bytes]


class GlooCommunicator(KunlunCommunicator):
    """A group whose data go through host memory."""

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
        self._calls = Calls()
        self._pg: Any = None
        # Connected in the thread too, so that a rank which has died meanwhile is noticed in time.
        self._work("join", lambda: self._connect(group), lambda _: None).wait()

    def _connect(self, group: int) -> None:
        with _numbered(self.rank):
            self._pg = core.ProcessGroupGloo.create(self._store, self.rank, self.world_size, group)
        self._all_bytes(np.zeros(1, np.uint8))  # nobody leaves before all have connected

    def _work(
        self, operation: str, call: Callable[[], Any], finish: Callable[[Any], None]
    ) -> HostWork:
        return HostWork(self, operation, self._calls.submit(call), finish)

    def _lines(self, mine: bytes) -> Lines:
        own = np.frombuffer(mine or b"\0", np.uint8).copy()
        lines = Lines(
            self,
            "barrier" if not mine else "comparison of calls",
            self._calls.submit(lambda: self._all_bytes(own)),
            lambda rows: setattr(lines, "found", [row.tobytes() for row in rows]),
        )
        return lines

    def _reduce(self, array: Any, op: ReduceOp) -> Work:
        host = self.provider.to_numpy(array)
        return self._work(
            "all_reduce", lambda: self._reduced(host, op), lambda out: self._put(array, out)
        )

    def _scatter(self, array: Any, out: Any, op: ReduceOp) -> Work:
        host = self.provider.to_numpy(array)
        first = self.rank * out.shape[0]
        return self._work(
            "reduce_scatter",
            lambda: self._reduced(host, op),
            lambda whole: self._put(out, whole[first : first + out.shape[0]]),
        )

    def _gather(self, array: Any, out: Any) -> Work:
        host = self.provider.to_numpy(array)
        return self._work(
            "all_gather",
            lambda: self._all_bytes(_bytes(host)),
            lambda rows: self._put(out, _typed(rows, host).reshape(tuple(out.shape))),
        )

    def _exchange(self, array: Any, out: Any) -> Work:
        host = self.provider.to_numpy(array)
        whole = (self.world_size, *host.shape)
        return self._work(
            "all_to_all",
            lambda: self._all_bytes(_bytes(host)),
            lambda rows: self._put(out, _typed(rows, host).reshape(whole)[:, self.rank]),
        )

    def _spread(self, array: Any, root: int) -> Work:
        host = self.provider.to_numpy(array)

        def call() -> Array:
            tensor = paddle.from_dlpack(_bytes(host))
            self._pg.broadcast(tensor, root, True).wait()
            return np.array(tensor.numpy())

        return self._work("broadcast", call, lambda raw: self._put_bytes(array, raw, host))

    def _give(self, array: Any, peer: int) -> Work:
        host = self.provider.to_numpy(array)

        def call() -> None:
            self._pg.send(paddle.from_dlpack(_bytes(host)), peer, True).wait()

        return self._work(f"send to rank {peer}", call, lambda _: None)

    def _take(self, array: Any, peer: int) -> Work:
        host = self.provider.to_numpy(array)

        def call() -> Array:
            tensor = paddle.from_dlpack(_bytes(host))
            self._pg.recv(tensor, peer, True).wait()
            return np.array(tensor.numpy())

        return self._work(
            f"recv from rank {peer}", call, lambda raw: self._put_bytes(array, raw, host)
        )

    def _leave(self) -> None:
        self._calls.close(_CLOSE_S if self._failure else self.timeout_s)
        self._pg = None

    def _reduced(self, host: Array, op: ReduceOp) -> Array:
        wide = host.astype(np.float32) if DType.parse(host.dtype) in _HALF else host
        tensor = paddle.from_dlpack(np.array(wide).reshape(-1))
        self._pg.all_reduce(tensor, _reduction(op), True).wait()
        out = np.array(tensor.numpy()).reshape(host.shape)
        if op is ReduceOp.AVG:
            out /= self.world_size
        with np.errstate(over="ignore", invalid="ignore"):
            return out.astype(host.dtype)

    def _all_bytes(self, mine: Array) -> Array:
        """The bytes of every rank, one row each."""
        out = paddle.from_dlpack(np.zeros(self.world_size * mine.size, np.uint8))
        self._pg.all_gather_into_tensor(out, paddle.from_dlpack(mine), True).wait()
        return np.array(out.numpy()).reshape(self.world_size, -1)

    def _put(self, array: Any, values: Array) -> None:
        # ascontiguousarray makes an array of one axis of a number.
        self.provider.write(array, np.ascontiguousarray(values).reshape(tuple(array.shape)))

    def _put_bytes(self, array: Any, raw: Array, like: Array) -> None:
        self._put(array, raw.view(like.dtype).reshape(like.shape))


@contextmanager
def _numbered(rank: int) -> Iterator[None]:
    """Paddle's process groups ask the environment for the rank, as its launcher sets it."""
    name = "PADDLE_TRAINER_ID"
    with _environment:
        before = os.environ.get(name)
        os.environ.setdefault(name, str(rank))
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]


def _reduction(op: ReduceOp) -> Any:
    word = {ReduceOp.AVG: "SUM", ReduceOp.PROD: "PRODUCT"}.get(op, op.name)
    return getattr(core.ReduceOp, word)


def _bytes(host: Array) -> Array:
    return np.array(host).reshape(-1).view(np.uint8)


def _typed(rows: Array, like: Array) -> Array:
    return np.ascontiguousarray(rows).reshape(-1).view(like.dtype)
