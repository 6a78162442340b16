"""Faults of copies between KV pools: what arrives, and what is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.conformance.zoo.member import add_member, member
from sagellm_backend.conformance.zoo.parts import Move, NoisyPool, OwnKV, with_move
from sagellm_backend.kv import CompletedTransfer, KVCopyPlan, KVPool, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.kv import ReferenceKVCopyPlan
from sagellm_backend.streams import Stream

_EXACT = "kv.copies_are_exact_and_touch_nothing_else"


def _fault(text: str) -> Callable[[Move], Move]:
    def declare(move: Move) -> Move:
        name = "copy" + move.__name__.replace("_", "-")
        add_member(name, "kv", text, with_move(move), kills=(_EXACT,))
        return move

    return declare


@_fault("A copy drops the last byte of a block")
def _drops_last_byte(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    write[:, :, targets, :-1] = read[:, :, sources, :-1]


@_fault("A copy leaves the values behind")
def _forgets_values(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    write[:, 0, targets] = read[:, 0, sources]


@_fault("A copy moves the first layer only")
def _forgets_layers(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    write[:1, :, targets] = read[:1, :, sources]


@_fault("A copy moves one block more than asked")
def _runs_over(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    write[:, :, targets] = read[:, :, sources]
    beyond = (int(targets[-1]) + 1) % write.shape[2]
    if beyond not in targets:
        write[:, :, beyond] = read[:, :, (int(sources[-1]) + 1) % read.shape[2]]


@_fault("A copy pairs sorted sources with sorted targets")
def _sorts_ids(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    write[:, :, np.sort(targets)] = read[:, :, np.sort(sources)]


@_fault("A copy takes a batch for one run of neighbours")
def _takes_a_run(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    for place, target in enumerate(targets):
        write[:, :, target] = read[:, :, (sources[0] + place) % read.shape[2]]


@_fault("A copy changes bits on the way: it takes them for numbers, and -0 for 0")
def _goes_through_numbers(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    pages = read[:, :, sources]
    write[:, :, targets] = np.where(pages == 0x80, 0, pages)


@_fault("A copy writes to its source what the target held")
def _exchanges(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    kept = write[:, :, targets].copy()
    write[:, :, targets] = read[:, :, sources]
    read[:, :, sources] = kept


@_fault("A copy moves no more than 8 blocks of a batch")
def _has_a_limit(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    write[:, :, targets[:8]] = read[:, :, sources[:8]]


class _PlanThatGuesses(ReferenceKVCopyPlan):
    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        ours, theirs = (pool.storage.memory.ctypes.data for pool in (self.source, self.target))
        if ours > theirs:
            return ReferenceKVCopyPlan(self.target, self.source)._copy(targets, sources, stream)
        return super()._copy(sources, targets, stream)


@member(
    "kv",
    "The direction of a copy is guessed from addresses",
    kills=("kv.a_plan_moves_the_way_it_says",),
)
class CopyGuessesDirection(OwnKV):
    plan = _PlanThatGuesses


class _PlanThatSaysWrong(ReferenceKVCopyPlan):
    @property
    def direction(self) -> str:
        return "host-to-host"


@member("kv", "Every plan says host-to-host", kills=("kv.a_plan_moves_the_way_it_says",))
class CopyMisstatesDirection(OwnKV):
    plan = _PlanThatSaysWrong


class _UncheckedPlan(ReferenceKVCopyPlan):
    def copy(self, source_ids: Any, target_ids: Any, stream: Stream | None = None) -> Transfer:
        count = min(np.size(source_ids), np.size(target_ids))
        if not count:
            return CompletedTransfer(0, 0)
        sources, targets = (
            np.ravel(ids)[:count].astype(np.int64) for ids in (source_ids, target_ids)
        )
        return self._copy(sources, targets, stream)


@member("kv", "A copy takes any ids as they are", kills=("kv.bad_batches_move_nothing",))
class CopyChecksNothing(OwnKV):
    plan = _UncheckedPlan


class _PiecemealPlan(ReferenceKVCopyPlan):
    def copy(self, source_ids: Any, target_ids: Any, stream: Stream | None = None) -> Transfer:
        if isinstance(source_ids, list):
            for source, target in zip(source_ids, target_ids, strict=False):
                super().copy([source], [target], stream).wait()
        return super().copy(source_ids, target_ids, stream)


@member(
    "kv",
    "A copy moves the blocks before a bad one, and then refuses",
    kills=("kv.bad_batches_move_nothing",),
)
class CopyStopsHalfway(OwnKV):
    plan = _PiecemealPlan


class _PlanOfAnyPools(ReferenceKVCopyPlan):
    def __init__(self, source: Any, target: Any) -> None:
        self.source, self.target = source, target


@member(
    "kv",
    "A plan is made between pools of unlike layouts",
    kills=("kv.pools_that_do_not_match_are_refused",),
)
class CopyReinterprets(OwnKV):
    plan = _PlanOfAnyPools


class _PlanOfAll(ReferenceKVCopyPlan):
    last: ReferenceKVCopyPlan | None = None

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        latest = type(self).last or self
        return ReferenceKVCopyPlan(latest.source, latest.target)._copy(sources, targets, stream)


@member(
    "kv",
    "Every copy goes between the pools of the plan that was made last",
    kills=("kv.plans_do_not_disturb_each_other",),
)
class CopyUsesLastPlan(OwnKV):
    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        _PlanOfAll.last = _PlanOfAll(source, target)
        return _PlanOfAll.last


class _StayingPlan(ReferenceKVCopyPlan):
    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        if self.source.device == self.target.device:
            return super()._copy(sources, targets, stream)
        return ReferenceKVCopyPlan(self.source, self.source)._copy(sources, sources, stream)


@member("kv", "A copy to another device stays on its own", kills=(_EXACT, "core.peer_copy"))
class CopyStaysOnItsDevice(OwnKV):
    plan = _StayingPlan
    pool = NoisyPool
