"""Block ids: who holds which block of a pool. Pure host bookkeeping, the same for every device."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.checks import check_ids, check_int
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError

BlockIds = npt.NDArray[np.int32]

_INT64 = np.dtype(np.int64)
_ONE = np.ones((), np.int32)
_ONE_BYTES = _ONE.tobytes()
_TAGS = np.arange(0, -1024, -1, dtype=np.int32)


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
        # Above zero for a block that is held; any other number is that of a free one.
        self._references = np.zeros(self._num_blocks, np.int32)
        self._marks = np.empty(self._num_blocks, np.int32)

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
            if count == 1:
                self._references[ids.item()] = 1
            else:
                self._references[ids.astype(_INT64)] = _ONE
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
        # Sequences grow and shrink by single blocks, for which NumPy's calls are most of the time.
        if type(ids) is np.ndarray and ids.size == 1 and self._free_one(ids):
            return 1
        checked = check_ids(ids, self._num_blocks)
        with self._lock:
            counts = self._references[checked]
            if _are_ones(counts):
                self._release(checked)
                gone = checked
            else:
                self._require_held(checked)
                counts -= 1
                self._references[checked] = counts
                gone = checked[counts == 0]
            top = self._num_free + gone.size
            self._free[self._num_free : top] = gone
            self._num_free = top
        return gone.size

    def references(self, ids: Any) -> npt.NDArray[np.int32]:
        """The reference count of each block; 0 for a free one."""
        checked = check_ids(ids, self._num_blocks)
        with self._lock:
            return np.maximum(self._references[checked], 0)

    def require_held(self, ids: Any) -> npt.NDArray[np.int64]:
        """``ids`` as int64, or :class:`InvalidArgumentError` if one is free, foreign or repeated."""
        checked = check_ids(ids, self._num_blocks)
        with self._lock:
            self._require_held(checked)
        return checked

    def _free_one(self, ids: npt.NDArray[Any]) -> bool:
        """Free the one block of an array if it has one reference; else change nothing."""
        block = ids.item() if ids.ndim == 1 and ids.dtype.kind in "iu" else -1
        with self._lock:
            if not 0 <= block < self._num_blocks or self._references.item(block) != 1:
                return False
            self._references[block] = 0
            self._free[self._num_free] = block
            self._num_free += 1
        return True

    def _release(self, ids: npt.NDArray[np.int64]) -> None:
        """Make blocks free that have one reference each; refuse those named twice."""
        try:
            _require_distinct(ids, self._references)
        except InvalidArgumentError:
            self._references[ids] = _ONE
            raise

    def _require_held(self, ids: npt.NDArray[np.int64]) -> None:
        counts = self._references[ids]
        if not _are_ones(counts) and (counts <= 0).any():
            wrong = int(ids[counts <= 0][0])
            raise InvalidArgumentError(
                f"Block {wrong} is not allocated: it was freed before or never handed out.",
                hint="Free each block once, and only blocks that this pool handed out.",
                block=wrong,
            )
        _require_distinct(ids, self._marks)


def _are_ones(counts: npt.NDArray[np.int32]) -> bool:
    # Bytes are compared in a fraction of the time that NumPy takes to compare numbers.
    return counts.tobytes() == _ONE_BYTES * counts.size


def _require_distinct(ids: npt.NDArray[np.int64], marks: npt.NDArray[np.int32]) -> None:
    """Set the mark of each id to a number of its own, zero or below; refuse ids named twice.

    Of an id named twice only the last number is kept.
    """
    size = ids.size
    tags = _TAGS[:size] if size <= _TAGS.size else np.arange(0, -size, -1, dtype=np.int32)
    marks[ids] = tags
    kept = marks[ids]
    if kept.tobytes() != tags.tobytes():
        wrong = int(ids[kept != tags][0])
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
