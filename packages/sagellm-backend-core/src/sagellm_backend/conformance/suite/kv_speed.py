"""Speed of copies of KV blocks: scattered blocks, as an engine has them, against one piece."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance import pages
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.speed import GIGA, Array, Work, report, same, sized
from sagellm_backend.kv import KVLayout

_LAYERS = 4
_SPREAD = 4
"""Blocks of a pool for each one that moves."""


class _Blocks(Work):
    """All blocks of a set moved from one pool to another by odd runs, and back by even ones.

    Each time they go to other places, drawn anew. ``amount`` counts the bytes of the blocks once a run.
    """

    def __init__(
        self, exam: Exam, layout: KVLayout, count: int, away: str, *, shuffle: bool = True
    ) -> None:
        super().__init__(exam)
        self.amount = float(count * layout.page_bytes)
        total = _SPREAD * count if shuffle else count
        self._pools = [exam.provider.kv_pool(layout, total, where) for where in ("device", away)]
        for pool in self._pools:
            pool.alloc(total)
        self._contents = pages.fill(exam, self._pools[0])
        pages.fill(exam, self._pools[1])
        self._plans = [
            exam.provider.kv_copy_plan(self._pools[side], self._pools[1 - side]) for side in (0, 1)
        ]
        self._draw = exam.rng.permutation if shuffle else np.arange
        self._count, self._total = count, total
        self._first: Array = self._draw(total)[:count]
        self._now: tuple[int, Array] = 0, self._first

    def begin(self) -> Any:
        return self._now

    def step(self, state: Any, index: int) -> Any:
        side, ids = state
        target: Array = self._draw(self._total)[: self._count]
        self._plans[side].copy(ids, target)
        self._now = 1 - side, target
        return self._now

    def look(self, state: Any) -> Array:
        side, ids = state
        pool = self._pools[side]
        values = self.provider.to_numpy(pool.value_cache(pool.layout.num_layers - 1))
        return np.asarray(values[ids])

    def check(self, part: Array, runs: int) -> None:
        layer = len(self._contents) - 1
        same(self.exam, part, self._contents[layer, pages.VALUES, self._first], "the last values")

    def check_all(self, state: Any, runs: int) -> None:
        side, ids = state
        found = pages.read(self.provider, self._pools[side])[:, :, ids]
        wanted = self._contents[:, :, self._first]
        same(self.exam, found, wanted, f"blocks that were moved {runs} times")


def _scattered(exam: Exam, away: str, nbytes: int) -> _Blocks:
    layout = pages.layout_for(
        exam.capability,
        exam["dtype"],
        block_size=_block_size(exam.capability, 16),
        layers=_LAYERS,
        heads=8,
        head_dim=64,
    )
    return _Blocks(exam, layout, max(nbytes // layout.page_bytes, 1), away)


def _in_one_piece(exam: Exam, away: str, nbytes: int) -> _Blocks:
    """One layer with one block of all the bytes, or as few as are allowed."""
    token_bytes = exam["dtype"].nbytes(2 * 8 * 64)
    layout = pages.layout_for(
        exam.capability,
        exam["dtype"],
        block_size=_block_size(exam.capability, nbytes // token_bytes),
        packing="packed" if "packed" in exam.capability.kv.packings else None,
        layers=1,
        heads=8,
        head_dim=64,
    )
    return _Blocks(exam, layout, max(nbytes // layout.page_bytes, 1), away, shuffle=False)


def _block_size(capability: CapabilityDescriptor, wanted: int) -> int:
    """The largest block size that is offered and not above ``wanted``, or the smallest of all."""
    kv = capability.kv
    sizes = kv.block_sizes or (min(wanted, kv.max_block_size),)
    return max((size for size in sizes if size <= wanted), default=min(sizes))


def _served(capability: CapabilityDescriptor) -> tuple[Any, ...]:
    """A dtype of two bytes that pools have, or the first."""
    return tuple(sorted(capability.kv.dtypes, key=lambda dtype: dtype.bits != 16))[:1]


def _measure(exam: Exam, away: str) -> None:
    scattered = sized(exam, lambda nbytes: _scattered(exam, away, nbytes))
    one = sized(exam, lambda nbytes: _in_one_piece(exam, away, nbytes))
    report(exam, "gb_per_s", GIGA, [scattered, one])


@case("kv", requires=(Feature.KV_POOL,), depth="standard", params={"dtype": _served})
def speed_of_block_copies(exam: Exam) -> None:
    """GB/s of scattered blocks copied between pools of the device, against one large block.

    Kills a copy that is left out because the plan has
    copied before.
    """
    _measure(exam, "device")


@case("kv", requires=(Feature.KV_HOST_POOL,), depth="standard", params={"dtype": _served})
def speed_of_swapping(exam: Exam) -> None:
    """GB/s of scattered blocks swapped out and in again, against one large block; both ways' mean.

    Kills a block that is taken for
    unchanged, and left where it was swapped out before.
    """
    _measure(exam, "host")
