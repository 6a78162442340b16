"""Faults of communicators: what they compute, and what they move."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.collectives import ReduceOp
from sagellm_backend.conformance.zoo.member import honest, member
from sagellm_backend.conformance.zoo.toy_group import Group, ToyGroups, ToyWork
from sagellm_backend.dtypes import dtype_of
from sagellm_backend.ops.cases import Array

_TWO = "collective.floats_of_two_ranks_are_reduced"
_THREE = "collective.floats_of_three_ranks_are_reduced"


honest(
    "Its collectives are exchanges over sockets, computed by every rank", profiles=("collective",)
)(ToyGroups)


class _Averaging(Group):
    def reduce(self, parts: list[Array], op: ReduceOp) -> Array:
        if op is ReduceOp.SUM and dtype_of(parts[0]).is_floating:
            op = ReduceOp.AVG
        return super().reduce(parts, op)


@member("collective", "A sum is an average", kills=(_TWO,))
class SumIsAnAverage(ToyGroups):
    group = _Averaging


class _OwnOrder(Group):
    def reduce(self, parts: list[Array], op: ReduceOp) -> Array:
        total = parts[self.rank]
        for step in range(1, len(parts)):
            other = parts[(self.rank + step) % len(parts)]
            total = super().reduce([total, other], op)
        return total if op is not ReduceOp.AVG else super().reduce(parts, op)


@member("collective", "Every rank adds in an order of its own", kills=(_THREE,))
class SumDiffersBetweenRanks(ToyGroups):
    group = _OwnOrder


class _AsFloats(Group):
    def reduce(self, parts: list[Array], op: ReduceOp) -> Array:
        if dtype_of(parts[0]).is_floating or op not in {ReduceOp.SUM, ReduceOp.PROD}:
            return super().reduce(parts, op)
        wide = [part.astype(np.float32) for part in parts]
        return super().reduce(wide, op).astype(parts[0].dtype)


@member(
    "collective",
    "Integers are added as floats",
    kills=("collective.integers_are_reduced_exactly",),
)
class IntegersAreAddedAsFloats(ToyGroups):
    group = _AsFloats


class _Saturating(Group):
    def reduce(self, parts: list[Array], op: ReduceOp) -> Array:
        found = super().reduce(parts, op)
        if found.dtype == np.float16:
            largest = np.finfo(np.float16).max
            finite = np.isfinite(np.stack(parts).astype(np.float64)).all(axis=0)
            found = np.where(finite, found.clip(-largest, largest), found)
        return found


@member(
    "collective",
    "A sum beyond fp16 stops at its largest number, silently",
    kills=("collective.half_sums_overflow_to_infinity",),
)
class HalfSumsSaturate(ToyGroups):
    group = _Saturating


class _DroppingNan(Group):
    def reduce(self, parts: list[Array], op: ReduceOp) -> Array:
        if dtype_of(parts[0]).is_floating:
            parts = [np.nan_to_num(part.astype(np.float32)).astype(part.dtype) for part in parts]
        return super().reduce(parts, op)


@member(
    "collective",
    "NaN counts as 0 in a sum",
    kills=("collective.special_numbers_survive_reductions",),
)
class SumsDropNan(ToyGroups):
    group = _DroppingNan


class _FirstPart(Group):
    def _reduce_scatter(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        rank, self.rank = self.rank, 0
        try:
            return super()._reduce_scatter(array, op, async_op)
        finally:
            self.rank = rank


@member(
    "collective",
    "Every rank gets the first part of a scattered sum",
    kills=("collective.scattered_sums_are_parts_of_the_sum",),
)
class ScatterGivesFirstPart(ToyGroups):
    group = _FirstPart


class _Turned(Group):
    def gather(self, parts: list[Array]) -> Array:
        return np.stack(parts[self.rank :] + parts[: self.rank])


@member(
    "collective",
    "Gathered arrays begin with one's own",
    kills=("collective.gathered_arrays_stand_in_the_order_of_ranks",),
)
class GatherBeginsWithOwn(ToyGroups):
    group = _Turned


class _ZeroRoot(Group):
    def _broadcast(self, array: Any, root: int, async_op: bool) -> Any:
        return super()._broadcast(array, 0 * root, async_op)


@member(
    "collective",
    "The root of a broadcast is always rank 0",
    kills=("collective.every_root_can_broadcast",),
)
class BroadcastIgnoresRoot(ToyGroups):
    group = _ZeroRoot


class _Staying(Group):
    def _all_to_all(self, array: Any, async_op: bool) -> Any:
        made = super()._all_to_all(array, async_op)
        target = made[1] if async_op else made
        if not async_op:
            self.write(target, self.provider.to_numpy(array))
        return made


@member(
    "collective",
    "all_to_all leaves every part where it was",
    kills=("collective.parts_are_exchanged_by_rank",),
)
class AllToAllMovesNothing(ToyGroups):
    group = _Staying


class _Overtaking(Group):
    kept: Any = None

    def _send(self, array: Any, peer: int) -> None:
        host = self.provider.to_numpy(array)
        if self.kept is None:
            self.kept = host
            return
        first, self.kept = self.kept, None
        self.mesh.send(peer, host)
        self.mesh.send(peer, first)


@member(
    "collective",
    "A message is overtaken by the next",
    kills=("collective.messages_reach_their_peer_in_order",),
)
class MessagesOvertake(ToyGroups):
    group = _Overtaking


class _NoEmpty(Group):
    def run(self, call: Any, array: Any, finish: Any, *, async_op: bool) -> ToyWork:
        if 0 in array.shape and call[0] != "barrier":
            raise RuntimeError("library error 4: invalid argument")
        return super().run(call, array, finish, async_op=async_op)


@member(
    "collective",
    "A collective of nothing fails",
    kills=("collective.empty_arrays_are_no_trouble",),
)
class EmptyCollectivesFail(ToyGroups):
    group = _NoEmpty


class _LateCheck(Group):
    def _check(self, array: Any, op: ReduceOp) -> None:
        if op is ReduceOp.AVG and not dtype_of(array).is_floating:
            self.mesh.exchange("average")
        super()._check(array, op)


@member(
    "collective",
    "A bad reduction is found when the peer has begun",
    kills=("collective.bad_arguments_send_nothing",),
)
class BadArgumentsAreSent(ToyGroups):
    group = _LateCheck
