"""Block ids: who holds which block of a pool. Pure host bookkeeping, the same for every device."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.checks import check_ids, check_int
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError

BlockIds = npt.NDArray[np.int32]


class BlockAllocator:
    """Hands out block ids in batches, counts references, and refuses what it did not hand out.

    Ids are int32 arrays. Every method either does all that was asked or raises and changes nothing.
    Thread-safe. The free list is a stack: what was freed last is handed out first, while it may
    still be in a cache.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = check_int("num_blocks", num_blocks, high=(1 << 31) - 1)
        self._lock = threading.Lock()
        self._free = np.arange(self._num_blocks - 1, -1, -1, dtype=np.int32)
        self._num_free = self._num_blocks
        self._references = np.zeros(self._num_blocks, np.int32)
        self._marks = np.empty(self._num_blocks, np.int64)

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that :meth:`alloc` could hand out now."""
        return self._num_free

    def alloc(self, count: int) -> BlockIds:
        """``count`` blocks with one reference each, in an array that the caller owns.

        All or nothing: raises :class:`OutOfMemoryError` with requested and free. ``count`` of zero
        gives an empty array.
        """
        count = check_int("count", count, low=0)
        with self._lock:
            rest = self._num_free - count
            if rest < 0:
                raise out_of_blocks(count, self._num_free, self._num_blocks)
            ids = self._free[rest : self._num_free].copy()
            self._references[ids] = 1
            self._num_free = rest
        return ids

    def retain(self, ids: Any) -> None:
        """Add one reference to each block; every block must be held, and named once."""
        checked = check_ids(ids, self._num_blocks)
        with self._lock:
            self._require_held(checked)
            self._references[checked] += 1

    def free(self, ids: Any) -> int:
        """Drop one reference from each block; how many became free.

        Raises :class:`InvalidArgumentError` for ids outside the pool, not held, or named twice.
        """
        checked = check_ids(ids, self._num_blocks)
        with self._lock:
            self._require_held(checked)
            left = self._references[checked] - 1
            self._references[checked] = left
            gone = checked if not left.any() else checked[left == 0]
            self._free[self._num_free : self._num_free + gone.size] = gone
            self._num_free += gone.size
        return int(gone.size)

    def references(self, ids: Any) -> npt.NDArray[np.int32]:
        """The reference count of each block; 0 for a free one."""
        return self._references[check_ids(ids, self._num_blocks)]

    def require_held(self, ids: Any) -> npt.NDArray[np.int64]:
        """``ids`` as int64, or :class:`InvalidArgumentError` if one is free, foreign or repeated."""
        checked = check_ids(ids, self._num_blocks)
        with self._lock:
            self._require_held(checked)
        return checked

    def _require_held(self, ids: npt.NDArray[np.int64]) -> None:
        if not self._references[ids].all():
            wrong = int(ids[self._references[ids] == 0][0])
            raise InvalidArgumentError(
                f"Block {wrong} is not allocated: it was freed before or never handed out.",
                hint="Free each block once, and only blocks that this pool handed out.",
                block=wrong,
            )
        # A block named twice keeps only its last position here.
        positions = np.arange(ids.size)
        self._marks[ids] = positions
        if not np.array_equal(self._marks[ids], positions):
            wrong = int(ids[self._marks[ids] != positions][0])
            raise InvalidArgumentError(f"Block {wrong} is named twice.", block=wrong)


def out_of_blocks(requested: int, free: int, limit: int) -> OutOfMemoryError:
    """The error for blocks that a pool does not have."""
    return OutOfMemoryError(
        f"{requested:,} KV blocks were requested, {free:,} of {limit:,} are free.",
        hint="Free blocks of finished sequences, or make the pool larger.",
        requested=requested,
        free=free,
        limit=limit,
    )
