"""Faults of communicators in time: order, waiting, groups, and peers that do not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sagellm_backend.collectives import Communicator
from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.conformance.zoo.mesh import Mesh
from sagellm_backend.conformance.zoo.toy_group import Group, ToyGroups, ToyWork
from sagellm_backend.errors import CommError
from sagellm_backend.ops.cases import Array


class _NoBarrier(Group):
    def _barrier(self) -> None:
        return


@member("collective", "A barrier does nothing", kills=("collective.a_barrier_waits_for_the_last",))
class BarrierDoesNothing(ToyGroups):
    group = _NoBarrier


class _Early(Group):
    def run(
        self, call: Any, array: Any, finish: Callable[[list[Array]], None], *, async_op: bool
    ) -> ToyWork:
        def late(parts: list[Array]) -> None:
            time.sleep(0.02)
            finish(parts)

        return super().run(call, array, late, async_op=async_op or call[0] != "barrier")


@member(
    "collective",
    "A collective returns before it is done",
    kills=("collective.results_are_there_when_calls_return",),
)
class CollectivesReturnEarly(ToyGroups):
    group = _Early


class _AlwaysDone(ToyWork):
    def done(self) -> bool:
        return True


class _Done(Group):
    def run(self, call: Any, array: Any, finish: Any, *, async_op: bool) -> ToyWork:
        made = super().run(call, array, finish, async_op=async_op)
        return _AlwaysDone(made.future, self)


@member(
    "collective",
    "Work is always done",
    kills=("collective.asynchronous_calls_end_when_waited_for",),
)
class WorkIsAlwaysDone(ToyGroups):
    group = _Done


class _Blocking(Group):
    def run(self, call: Any, array: Any, finish: Any, *, async_op: bool) -> ToyWork:
        del async_op
        return super().run(call, array, finish, async_op=False)


@member(
    "collective",
    "An asynchronous call waits for its peer",
    kills=("collective.asynchronous_calls_end_when_waited_for",),
)
class AsyncCallsBlock(ToyGroups):
    group = _Blocking


class _WholeRanks(Group):
    def _subgroup(self, ranks: list[int]) -> Communicator | None:
        return super()._subgroup(sorted(ranks))


@member(
    "collective",
    "A subgroup is numbered as the whole",
    kills=("collective.groups_do_not_mix",),
)
class SubgroupsAreSorted(ToyGroups):
    group = _WholeRanks


@member(
    "collective",
    "An address serves once",
    kills=("collective.groups_can_be_made_again",),
)
class AddressesServeOnce(ToyGroups):
    def _communicator(self, rank: Any, world_size: Any, init_method: Any, timeout_s: float) -> Any:
        used = self.__dict__.setdefault("used", set())
        if world_size != 1 and init_method in used:
            raise CommError(f"{init_method} is in use.")
        used.add(init_method)
        return super()._communicator(rank, world_size, init_method, timeout_s)


class _Agreeing(Group):
    def run(self, call: Any, array: Any, finish: Any, *, async_op: bool) -> ToyWork:
        del call
        return super().run((), array, finish, async_op=async_op)


@member(
    "collective",
    "Ranks that call other things are not told",
    kills=("collective.disagreement_is_refused_where_asked_for",),
)
class DisagreementIsNotSeen(ToyGroups):
    group = _Agreeing


class _Patient(Group):
    def __init__(self, provider: Any, mesh: Mesh, timeout_s: float) -> None:
        mesh._timeout_s = 1e4
        super().__init__(provider, mesh, timeout_s)


@member(
    "collective",
    "A collective waits for ever for a peer",
    kills=("collective.a_peer_that_does_not_come_is_a_timeout",),
    limit_s=12.0,
)
class CollectivesWaitForEver(ToyGroups):
    group = _Patient


@member(
    "collective",
    "A rendezvous waits for ever",
    kills=("collective.a_group_that_does_not_form_is_a_timeout",),
)
class RendezvousWaitsForEver(ToyGroups):
    def _communicator(self, rank: Any, world_size: Any, init_method: Any, timeout_s: float) -> Any:
        return super()._communicator(rank, world_size, init_method, timeout_s + 1e4)


class _Undying(Group):
    def _exchange(self, head: Any, host: Array, finish: Any) -> None:
        try:
            super()._exchange(head, host, finish)
        except CommError:
            time.sleep(1e4)


@member(
    "collective",
    "A dead peer is waited for",
    kills=("collective.a_dead_peer_is_an_error",),
    limit_s=12.0,
)
class DeadPeersAreWaitedFor(ToyGroups):
    group = _Undying


class _GoingOn(Group):
    def _exchange(self, head: Any, host: Array, finish: Any) -> None:
        try:
            super()._exchange(head, host, finish)
        except CommError:
            self.closed = False
            finish([host] * self.world_size)


@member(
    "collective",
    "Without its peer a rank goes on alone",
    kills=("collective.a_dead_peer_is_an_error",),
)
class RanksGoOnAlone(ToyGroups):
    group = _GoingOn


@member(
    "collective",
    "A group of one wants an address",
    kills=("collective.a_group_of_one_is_the_identity",),
)
class GroupOfOneWantsAnAddress(ToyGroups):
    def _communicator(self, rank: Any, world_size: Any, init_method: Any, timeout_s: float) -> Any:
        if init_method is None:
            raise CommError("No address was given.")
        return super()._communicator(rank, world_size, init_method, timeout_s)


@member(
    "collective",
    "The default group stays when it is closed",
    kills=("collective.protocol_calls_use_the_first_open_group",),
)
class DefaultGroupStaysClosed(ToyGroups):
    def communicator(self, *args: Any, **kwargs: Any) -> Communicator:
        before = self._default_communicator
        made = super().communicator(*args, **kwargs)
        if before is not None:
            self._default_communicator = before
        return made
