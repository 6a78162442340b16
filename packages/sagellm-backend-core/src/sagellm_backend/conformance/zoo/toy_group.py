"""A communicator in plain Python, correct and slow, for the zoo to break."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.collectives import COLLECTIVES, Communicator, ReduceOp, Work
from sagellm_backend.conformance.zoo.features import Having
from sagellm_backend.conformance.zoo.mesh import Mesh
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import CommError, CommTimeoutError, InvalidArgumentError
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.provider import ReferenceProvider

_BITWISE = {
    ReduceOp.BAND: np.bitwise_and,
    ReduceOp.BOR: np.bitwise_or,
    ReduceOp.BXOR: np.bitwise_xor,
}
_REDUCTIONS: dict[ReduceOp, Any] = {
    ReduceOp.SUM: np.add,
    ReduceOp.AVG: np.add,
    ReduceOp.MAX: np.maximum,
    ReduceOp.MIN: np.minimum,
    ReduceOp.PROD: np.multiply,
    **_BITWISE,
}


class DisagreementError(CommError):
    """The ranks called different things. The group can be used on."""


class ToyWork(Work):
    """A collective on the thread of its group."""

    def __init__(self, future: Future[Any], group: Group) -> None:
        self.future = future
        self._group = group

    def done(self) -> bool:
        return self.future.done()

    def wait(self, timeout_s: float | None = None) -> None:
        try:
            self.future.result(timeout_s)
        except FutureTimeout as error:
            raise CommTimeoutError(f"Not done after {timeout_s} s.") from error


class Group(Communicator):
    """Every collective is an exchange of everybody's arrays, after which each rank computes."""

    def __init__(self, provider: ReferenceProvider, mesh: Mesh, timeout_s: float) -> None:
        super().__init__(mesh.rank, mesh.size, timeout_s)
        self.provider = provider
        self.mesh = mesh
        self._thread = ThreadPoolExecutor(1, "group")

    def reduce(self, parts: list[Array], op: ReduceOp) -> Array:
        """The reduction of everybody's arrays: in rank order, floats in float64, rounded once."""
        dtype = dtype_of(parts[0])
        wide = [part.astype(np.float64) if dtype.is_floating else part for part in parts]
        with np.errstate(all="ignore"):
            found: Array = _REDUCTIONS[op].reduce(np.stack(wide), axis=0, dtype=wide[0].dtype)
            if op is ReduceOp.AVG:
                found = found / len(parts)
            return found.astype(dtype.numpy)

    def gather(self, parts: list[Array]) -> Array:
        """Everybody's arrays stacked."""
        return np.stack(parts)

    def run(
        self,
        call: tuple[Any, ...],
        array: Any,
        finish: Callable[[list[Array]], None],
        *,
        async_op: bool,
    ) -> ToyWork:
        """Exchange an array, and give everybody's to ``finish``."""
        host = self.provider.to_numpy(array)
        head = (*call, host.shape, host.dtype.name)
        work = ToyWork(self._thread.submit(self._exchange, head, host, finish), self)
        if not async_op:
            work.wait()
        return work

    def write(self, array: DeviceArray, values: Array) -> None:
        """Put values into an array."""
        array.raw()[...] = values

    def _exchange(
        self, head: tuple[Any, ...], host: Array, finish: Callable[[list[Array]], None]
    ) -> None:
        try:
            heads, parts = zip(*self.mesh.exchange((head, host)), strict=True)
        except CommError:
            self.closed = True
            raise
        if any(other != head for other in heads):
            raise DisagreementError(f"The ranks called {heads}.")
        finish(list(parts))

    def _array(self, name: str, array: Any) -> DeviceArray:
        if not isinstance(array, DeviceArray) or not array.raw().flags.c_contiguous:
            raise InvalidArgumentError(f"{name} must be a contiguous array of this backend.")
        return array

    def _all_reduce(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        self._check(array, op)

        def finish(parts: list[Array]) -> None:
            self.write(array, self.reduce(parts, op))

        work = self.run(("all_reduce", op), array, finish, async_op=async_op)
        return work if async_op else array

    def _all_gather(self, array: Any, async_op: bool) -> Any:
        made = self._like(array, (self.world_size, *array.shape))

        def finish(parts: list[Array]) -> None:
            self.write(made, self.gather(parts))

        work = self.run(("all_gather",), array, finish, async_op=async_op)
        return (work, made) if async_op else made

    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        self._check(array, op)
        count = array.shape[0] // self.world_size
        made = self._like(array, (count, *array.shape[1:]))

        def finish(parts: list[Array]) -> None:
            mine = slice(self.rank * count, (self.rank + 1) * count)
            self.write(made, self.reduce([part[mine] for part in parts], op))

        work = self.run(("reduce_scatter", op), array, finish, async_op=async_op)
        return (work, made) if async_op else made

    def _broadcast(self, array: Any, root: int, async_op: bool) -> Any:
        def finish(parts: list[Array]) -> None:
            self.write(array, parts[root])

        work = self.run(("broadcast", root), array, finish, async_op=async_op)
        return work if async_op else array

    def _all_to_all(self, array: Any, async_op: bool) -> Any:
        made = self._like(array, array.shape)

        def finish(parts: list[Array]) -> None:
            self.write(made, np.stack([part[self.rank] for part in parts]))

        work = self.run(("all_to_all",), array, finish, async_op=async_op)
        return (work, made) if async_op else made

    def _send(self, array: Any, peer: int) -> None:
        host = self.provider.to_numpy(array)
        self._thread.submit(self.mesh.send, peer, host).result()

    def _recv(self, array: Any, peer: int) -> Any:
        self.write(array, self._thread.submit(self.mesh.receive, peer).result())
        return array

    def _barrier(self) -> None:
        nothing = self.provider.from_numpy(np.zeros(0, np.int32))
        self.run(("barrier",), nothing, lambda _: None, async_op=False)

    def _subgroup(self, ranks: list[int]) -> Communicator | None:
        mesh = self._thread.submit(self.mesh.split, ranks).result()
        return None if mesh is None else type(self)(self.provider, mesh, self.timeout_s)

    def _close(self) -> None:
        self._thread.shutdown(wait=True)
        self.mesh.close()

    def close(self) -> None:
        if self.closed and not self._thread._shutdown:
            self._close()  # it was left by a failure
        super().close()

    def _check(self, array: DeviceArray, op: ReduceOp) -> None:
        floating = dtype_of(array).is_floating
        if (op is ReduceOp.AVG and not floating) or (op in _BITWISE and floating):
            raise InvalidArgumentError(f"{op.value} is not for {array.dtype}.")

    def _like(self, array: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
        made: DeviceArray = self.provider.empty(shape, DType.parse(array.dtype))
        return made


class Alone(Group):
    """A group of one."""

    def __init__(self, provider: ReferenceProvider, timeout_s: float) -> None:
        super().__init__(provider, Mesh.alone(), timeout_s)


class ToyGroups(Having):
    """The reference with three devices and communicators between processes of one machine."""

    has = frozenset({Feature.COLLECTIVE})
    group: type[Group] = Group

    def __init__(self, config: Any = None) -> None:
        self._groups: list[Communicator] = []
        super().__init__(config)

    def close(self) -> None:
        for group in self._groups:
            group.close()
        super().close()

    def _device_count(self) -> int:
        return 3

    def _devices(self) -> list[str]:
        return [self._device_name(index) for index in range(3)]

    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        first: DeviceInfo = found.devices[0]
        return replace(
            found,
            has_collective=True,
            supported_collectives=list(COLLECTIVES),
            devices=tuple(replace(first, index=index) for index in range(3)),
        )

    def _communicator(
        self, rank: int | None, world_size: int | None, init_method: str | None, timeout_s: float
    ) -> Communicator:
        if world_size == 1 and not rank:
            mesh = Mesh.alone()
        elif rank is None or world_size is None or not str(init_method).startswith("file://"):
            raise InvalidArgumentError("Give rank, world_size and a file:// init_method.")
        else:
            mesh = Mesh.meet(rank, world_size, str(init_method)[len("file://") :], timeout_s)
        made = self.group(self, mesh, timeout_s)
        self._groups.append(made)
        return made
