"""Collectives: work that a group of processes does together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from sagellm_backend.checks import check_int, check_seconds, check_type, shown
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from typing_extensions import Self


class ReduceOp(str, Enum):
    """Reductions of Protocol v0.1. The bitwise ones are for integers."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    PROD = "prod"
    BAND = "band"
    BOR = "bor"
    BXOR = "bxor"
    AVG = "avg"

    __hash__ = str.__hash__

    @classmethod
    def parse(cls, value: Any) -> ReduceOp:
        """The member that ``value`` names. Raises :class:`InvalidArgumentError`."""
        try:
            return cls(getattr(value, "value", value))
        except ValueError:
            known = ", ".join(member.value for member in cls)
            raise InvalidArgumentError(
                f"{shown(value)} is not a reduction.", hint=f"Known are {known}."
            ) from None


COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "all_to_all",
    "send",
    "recv",
    "barrier",
)
"""The names that ``supported_collectives`` may hold."""


class Work(ABC):
    """A collective under way. The arrays given to it belong to it until :meth:`wait` returns."""

    @abstractmethod
    def done(self) -> bool:
        """Whether it has ended; never waits."""

    @abstractmethod
    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is done; raises :class:`CommError` or :class:`CommTimeoutError`."""


class Communicator(ABC):
    """One group of ``world_size`` processes; this process is ``rank``.

    Every rank calls the same collectives in the same order with equal shapes and dtypes. Arrays are
    contiguous native arrays on the provider's device. ``async_op=True`` returns a :class:`Work` at
    once; otherwise the call returns when the result is there. A peer that died or never arrives is
    :class:`CommError` or :class:`CommTimeoutError` within the group's timeout; the group is then
    unusable. One thread at a time.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self.world_size = check_int("world_size", world_size, high=1 << 20)
        self.rank = check_int("rank", rank, low=0, high=self.world_size - 1)
        self.timeout_s = check_seconds("timeout_s", timeout_s)
        self.closed = False

    def all_reduce(self, array: Any, op: Any = ReduceOp.SUM, *, async_op: bool = False) -> Any:
        """Reduce over all ranks, in place; the same bits on every rank.

        Returns ``array``, or a :class:`Work`.
        """
        self._require_open()
        return self._all_reduce(self._array("array", array), ReduceOp.parse(op), bool(async_op))

    def all_gather(self, array: Any, *, async_op: bool = False) -> Any:
        """Every rank's array, stacked by rank: shape (world_size, *array.shape).

        With ``async_op``: ``(work, stacked)``.
        """
        self._require_open()
        return self._all_gather(self._array("array", array), bool(async_op))

    def reduce_scatter(self, array: Any, op: Any = ReduceOp.SUM, *, async_op: bool = False) -> Any:
        """Reduce over all ranks, and return this rank's part.

        ``array`` has shape (world_size * n, ...), the result (n, ...). With ``async_op``:
        ``(work, part)``.
        """
        self._require_open()
        self._array("array", array)
        if not array.shape or array.shape[0] % self.world_size:
            raise InvalidArgumentError(
                f"The first size of {tuple(array.shape)} does not divide by {self.world_size} ranks."
            )
        return self._reduce_scatter(array, ReduceOp.parse(op), bool(async_op))

    def broadcast(self, array: Any, root: int = 0, *, async_op: bool = False) -> Any:
        """Copy ``root``'s array over everybody's, in place. Returns ``array``, or a :class:`Work`."""
        self._require_open()
        return self._broadcast(self._array("array", array), self._peer(root), bool(async_op))

    def all_to_all(self, array: Any, *, async_op: bool = False) -> Any:
        """Send part i to rank i and return what was received, by rank.

        ``array`` has shape (world_size, ...), and so has the result. With ``async_op``:
        ``(work, received)``.
        """
        self._require_open()
        self._array("array", array)
        if not array.shape or array.shape[0] != self.world_size:
            raise InvalidArgumentError(
                f"The first size of {tuple(array.shape)} must be the {self.world_size} ranks."
            )
        return self._all_to_all(array, bool(async_op))

    def send(self, array: Any, peer: int) -> None:
        """Send to another rank, which calls :meth:`recv`."""
        self._require_open()
        self._send(self._array("array", array), self._other(peer))

    def recv(self, array: Any, peer: int) -> Any:
        """Receive into ``array`` what ``peer`` sends; returns ``array``."""
        self._require_open()
        return self._recv(self._array("array", array), self._other(peer))

    def barrier(self) -> None:
        """Return when every rank has come here."""
        self._require_open()
        self._barrier()

    def subgroup(self, ranks: Sequence[int]) -> Communicator | None:
        """A communicator of some of the ranks, numbered in the order given.

        Every rank of this group calls it, in the same order; ranks left out get ``None``.
        """
        self._require_open()
        members = [self._peer(rank) for rank in check_type("ranks", ranks, Sequence)]
        if not members or len(set(members)) != len(members):
            raise InvalidArgumentError(f"ranks must be distinct and at least one, not {ranks!r}.")
        return self._subgroup(members)

    def close(self) -> None:
        """Leave the group and free its resources. Closing twice is allowed."""
        if not self.closed:
            self.closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self.closed:
            raise UnavailableError("This communicator is closed.")

    def _peer(self, rank: int) -> int:
        return check_int("rank", rank, low=0, high=self.world_size - 1)

    def _other(self, rank: int) -> int:
        if self._peer(rank) == self.rank:
            raise InvalidArgumentError(f"Rank {rank} cannot send to or receive from itself.")
        return rank

    @abstractmethod
    def _array(self, name: str, array: Any) -> Any:
        """``array`` if it is a contiguous native array here, else InvalidArgumentError."""

    @abstractmethod
    def _all_reduce(self, array: Any, op: ReduceOp, async_op: bool) -> Any: ...

    @abstractmethod
    def _all_gather(self, array: Any, async_op: bool) -> Any: ...

    @abstractmethod
    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any: ...

    @abstractmethod
    def _broadcast(self, array: Any, root: int, async_op: bool) -> Any: ...

    @abstractmethod
    def _all_to_all(self, array: Any, async_op: bool) -> Any: ...

    @abstractmethod
    def _send(self, array: Any, peer: int) -> None: ...

    @abstractmethod
    def _recv(self, array: Any, peer: int) -> Any: ...

    @abstractmethod
    def _barrier(self) -> None: ...

    @abstractmethod
    def _subgroup(self, ranks: list[int]) -> Communicator | None: ...

    @abstractmethod
    def _close(self) -> None: ...


__all__ = ["COLLECTIVES", "Communicator", "ReduceOp", "Work"]
