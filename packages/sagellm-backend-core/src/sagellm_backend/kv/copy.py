"""Moving KV blocks: plan once, copy many times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.checks import check_seconds, check_type
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kv.pool import KVPool
from sagellm_backend.streams import Stream

Ids = npt.NDArray[np.int64]


class Transfer(ABC):
    """A copy under way. The blocks it reads and writes belong to it until it is done."""

    def __init__(self, num_blocks: int, nbytes: int) -> None:
        self.num_blocks = num_blocks
        self.nbytes = nbytes

    @abstractmethod
    def done(self) -> bool:
        """Whether the copy has ended, well or badly; never waits."""

    @abstractmethod
    def _wait(self, timeout_s: float) -> None: ...

    def wait(self, timeout_s: float = 60.0) -> None:
        """Return when the blocks are copied.

        Raises :class:`KVTransferError` if the copy failed and :class:`DeadlineExceededError` if it
        is still under way after ``timeout_s`` seconds.
        """
        self._wait(check_seconds("timeout_s", timeout_s))


class CompletedTransfer(Transfer):
    """A copy that was done before its call returned."""

    def done(self) -> bool:
        return True

    def _wait(self, timeout_s: float) -> None:
        return None


class KVCopyPlan(ABC):
    """What is the same for every copy from one pool to another: addresses, strides, direction.

    Swapping out and in are plans between a device and a host pool, migration one between devices.
    Layouts must be equal but for ``alignment``; copies are bit-exact.
    """

    def __init__(self, source: KVPool, target: KVPool) -> None:
        self.source = source
        self.target = target
        ours, theirs = (replace(pool.layout, alignment=1) for pool in (source, target))
        if ours != theirs:
            raise InvalidArgumentError(
                f"The layouts of the two pools differ: {ours} and {theirs}.",
                hint="Make both pools with one layout.",
            )

    @property
    def direction(self) -> str:
        """``device-to-host`` and the like; declared by the pools, never guessed from pointers."""
        return f"{self.source.location}-to-{self.target.location}"

    def copy(self, source_ids: Any, target_ids: Any, stream: Stream | None = None) -> Transfer:
        """Copy block ``source_ids[i]`` to ``target_ids[i]``, every layer, keys and values.

        All ids are checked before anything moves: they must be allocated, distinct within each
        list, equally many, and within one pool no block may be both source and target. An empty
        batch does nothing. Ordered after earlier work of ``stream``; without one the copy is done
        on return. Raises :class:`InvalidArgumentError`, and :class:`KVTransferError` if the device
        fails.
        """
        sources = self.source.require_held(source_ids)
        targets = self.target.require_held(target_ids)
        if sources.size != targets.size:
            raise InvalidArgumentError(
                f"{sources.size} source blocks and {targets.size} target blocks do not pair up.",
                sources=sources.size,
                targets=targets.size,
            )
        if self.source is self.target and _meet(sources, targets, self.source.num_blocks):
            raise InvalidArgumentError("A block is both source and target of one copy.")
        if stream is not None:
            owner = check_type("stream", stream, Stream).owner
            if owner is not self.source.owner:
                raise InvalidArgumentError("The stream belongs to another provider.")
        if not sources.size:
            return CompletedTransfer(0, 0)
        return self._copy(sources, targets, stream)

    @abstractmethod
    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer: ...


def _meet(sources: Ids, targets: Ids, num_blocks: int) -> bool:
    read = np.zeros(num_blocks, np.bool_)
    read[sources] = True
    return bool(read[targets].any())
