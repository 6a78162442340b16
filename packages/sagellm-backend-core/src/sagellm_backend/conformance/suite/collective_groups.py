"""Groups: their order in time, several at once, and what becomes of a peer that does not come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sagellm_backend.collectives import Communicator
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.groups import GROUP, TIMEOUT_S, join
from sagellm_backend.errors import CommError, CommTimeoutError, UnavailableError

CHECK_VARIABLE = "SAGELLM_CHECK_COLLECTIVES"
SLOW_S = 2.0
ALONE_S = 0.5
PATIENCE_S = 10.0
DISAGREEMENTS = ("shape", "dtype", "reduction", "root", "call")


@case("collective", requires=GROUP, world=3)
def a_barrier_waits_for_the_last(exam: Exam) -> None:
    """No rank leaves a barrier before the last has come to it.

    Kills: a barrier that does nothing, or waits for rank 0 only.
    """
    group = join(exam)
    for last in range(exam.world):
        group.barrier()
        if exam.rank == last:
            time.sleep(0.15)
        came = time.monotonic_ns()
        group.barrier()
        left = time.monotonic_ns()
        times = exam.provider.to_numpy(group.all_gather(exam.provider.from_numpy(np.array([came]))))
        early = (int(times.max()) - left) / 1e6
        exam.check(early <= 0, f"Rank {exam.rank} left {early:.1f} ms before rank {last} came.")


@case("collective", requires=GROUP, world=2)
def results_are_there_when_calls_return(exam: Exam) -> None:
    """A collective without async_op has its result on return, however late the peer comes.

    Kills: a call that returns before it is done.
    """
    group, provider = join(exam), exam.provider
    for turn in range(4):
        if exam.rank == turn % 2:
            time.sleep(0.1)
        big = np.full(200_000, exam.rank + 1 + turn, np.int64)
        found = provider.to_numpy(group.all_reduce(provider.from_numpy(big)))
        exam.equal_bits(found, np.full_like(big, 3 + 2 * turn), "A sum that was waited for")
        stacked = provider.to_numpy(group.all_gather(provider.from_numpy(big[:50_000])))
        exam.check(stacked[1, -1] - stacked[0, -1] == 1, "A gathered array was not there.")


@case("collective", requires=GROUP, world=2)
def asynchronous_calls_end_when_waited_for(exam: Exam) -> None:
    """Several collectives are under way at once; each has its result after its own wait.

    Kills: a wait that does not wait, done() that blocks or is always true, and results exchanged.
    """
    group, provider = join(exam), exam.provider
    first = provider.from_numpy(np.arange(50_000, dtype=np.int64) * (exam.rank + 1))
    second = provider.from_numpy(np.full(7, float(exam.rank), np.float32))
    third = provider.from_numpy(np.array([10 + exam.rank], np.int32))
    group.barrier()
    if exam.rank == 1:
        time.sleep(SLOW_S / 2)
    start = time.monotonic()
    reduced = group.all_reduce(first, async_op=True)
    gathering, gathered = group.all_gather(second, async_op=True)
    sending = group.broadcast(third, 1, async_op=True)
    taken = time.monotonic() - start
    exam.check(taken < 0.8 * SLOW_S / 2, "A call with async_op waited for its peer.")
    if exam.rank == 0 and taken < 0.4 * SLOW_S / 2:
        exam.check(not reduced.done(), "A sum is done before the other rank gave its part.")
    for work in (sending, reduced, gathering):
        work.wait(TIMEOUT_S)
        exam.check(work.done(), "Work that was waited for is not done.")
        work.wait()
    exam.equal_bits(provider.to_numpy(first), np.arange(50_000) * 3, "The sum")
    wanted = np.repeat(np.array([[0.0], [1.0]], np.float32), 7, axis=1)
    exam.equal_bits(provider.to_numpy(gathered), wanted, "What was gathered")
    exam.equal_bits(provider.to_numpy(third), np.array([11], np.int32), "What rank 1 sent")


@case("collective", requires=GROUP, world=3)
def groups_do_not_mix(exam: Exam) -> None:
    """Two groups used in turn keep their members, their order of ranks and their messages apart.

    Kills: a subgroup that is the whole group, ranks numbered as in the whole, and messages of one
    group that reach another.
    """
    whole, provider = join(exam), exam.provider
    chosen = [2, 0]
    some = whole.subgroup(chosen)
    exam.check((some is None) == (exam.rank not in chosen), "A rank left out got a group, or not.")
    own = provider.from_numpy(np.array([100 + exam.rank], np.int64))
    for turn in range(3):
        total = provider.from_numpy(np.array([exam.rank + turn], np.int64))
        pending = whole.all_reduce(total, async_op=True)
        if some is not None:
            exam.check(some.rank == chosen.index(exam.rank), f"Rank {some.rank} in {chosen}.")
            exam.check(some.world_size == 2, f"A group of 2 says {some.world_size}.")
            stacked = provider.to_numpy(some.all_gather(own))
            exam.equal_bits(stacked, np.array([[102], [100]]), "A subgroup's arrays")
            part = provider.from_numpy(np.array([exam.rank], np.int64))
            exam.equal_bits(provider.to_numpy(some.all_reduce(part)), np.array([2]), "Its sum")
        pending.wait(TIMEOUT_S)
        exam.equal_bits(provider.to_numpy(total), np.array([3 + 3 * turn]), "The whole's sum")
    if some is not None:
        some.close()
    whole.barrier()


@case("collective", requires=GROUP, world=2)
def groups_can_be_made_again(exam: Exam) -> None:
    """A group that was closed can be joined again at the same address, five times over.

    Kills: an address that stays taken, and the state of an old group in a new one.
    """
    for turn in range(5):
        group = join(exam)
        array = exam.provider.from_numpy(np.array([exam.rank + turn], np.int32))
        found = exam.provider.to_numpy(group.all_reduce(array))
        exam.equal_bits(found, np.array([1 + 2 * turn], np.int32), f"Sum of group {turn + 1}")
        group.close()


@case("collective", requires=GROUP, params={"about": DISAGREEMENTS}, world=2)
def disagreement_is_refused_where_asked_for(exam: Exam) -> None:
    """With SAGELLM_CHECK_COLLECTIVES=1 ranks that call other things get a CommError, all of them.

    Nothing was sent, and the group can be used on. Kills: a wrong result or a crash where shapes,
    types, reductions, roots or calls differ.
    """
    with _checking():
        group = join(exam)
    call = _disagreeing(exam, group, exam["about"])
    start = time.monotonic()
    exam.refuses(CommError, call)
    exam.check(time.monotonic() - start < PATIENCE_S, "The disagreement was found too late.")
    array = exam.provider.from_numpy(np.ones(4, np.float32))
    found = exam.provider.to_numpy(group.all_reduce(array))
    exam.equal_bits(found, np.full(4, exam.world, np.float32), "The sum after a disagreement")


@case("collective", requires=GROUP, world=2)
def a_peer_that_does_not_come_is_a_timeout(exam: Exam) -> None:
    """A collective that a peer never calls ends by CommTimeoutError, and the group with it.

    Kills: a wait without end, and a failed group that goes on with wrong results.
    """
    late = join(exam, provider=exam.make())
    late.barrier()  # so that the next group forms within its short timeout
    group = join(exam, SLOW_S)
    if exam.rank == 0:
        start = time.monotonic()
        array = exam.provider.from_numpy(np.ones(4, np.float32))
        exam.refuses(CommTimeoutError, group.all_reduce, array)
        taken = time.monotonic() - start
        exam.check(SLOW_S / 2 < taken < SLOW_S + PATIENCE_S / 2, f"It took {taken:.1f} s.")
        exam.refuses(UnavailableError, group.all_reduce, array)
    late.barrier()
    group.close()


@case("collective", requires=GROUP, world=2)
def a_group_that_does_not_form_is_a_timeout(exam: Exam) -> None:
    """Joining where not everybody comes ends by CommTimeoutError, and the next group can be made.

    Kills: a rendezvous without end, and an address that is spoilt by it.
    """
    with join(exam) as group:
        group.barrier()  # from here both ranks run beside each other
    if exam.rank == 1:
        start = time.monotonic()
        exam.refuses(CommTimeoutError, exam.provider.communicator, 1, 2, exam.init_method, ALONE_S)
        exam.check(time.monotonic() - start < PATIENCE_S / 2, "It was noticed too late.")
    else:
        time.sleep(5 * ALONE_S)
    group = join(exam)
    array = exam.provider.from_numpy(np.ones(1, np.int32))
    found = exam.provider.to_numpy(group.all_reduce(array))
    exam.equal_bits(found, np.array([2], np.int32), "The sum of the group that did form")


@case("collective", requires=GROUP, world=3)
def a_dead_peer_is_an_error(exam: Exam) -> None:
    """When a process dies, the others get a CommError within the timeout, and the group is unusable.

    Kills: a wait without end for what will never come.
    """
    group = join(exam, PATIENCE_S)
    group.barrier()
    if exam.rank == 2:
        exam.die()
    time.sleep(0.2)
    start = time.monotonic()
    array = exam.provider.from_numpy(np.ones(1000, np.float32))
    try:
        group.all_reduce(array)
    except CommError:
        taken = time.monotonic() - start
    else:
        exam.check(False, "A sum with a dead peer came back.")
    exam.check(taken < 1.5 * PATIENCE_S, f"It took {taken:.1f} s to see that a peer is dead.")
    exam.refuses(UnavailableError, group.all_reduce, array)
    group.close()


@contextmanager
def _checking() -> Iterator[None]:
    before = os.environ.get(CHECK_VARIABLE)
    os.environ[CHECK_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CHECK_VARIABLE]
        else:
            os.environ[CHECK_VARIABLE] = before


def _disagreeing(exam: Exam, group: Communicator, about: str) -> Callable[[], Any]:
    """A call that differs between the ranks in one respect."""
    rank, native = exam.rank, exam.provider.from_numpy
    plain = native(np.ones(4, np.float32))
    if about == "shape":
        other = native(np.ones(4 + rank, np.float32))
        return lambda: group.all_reduce(other)
    if about == "dtype":
        typed = native(np.ones(4, (np.float32, np.int32)[rank]))
        return lambda: group.all_gather(typed)
    if about == "reduction":
        return lambda: group.all_reduce(plain, ("sum", "max")[rank])
    if about == "root":
        return lambda: group.broadcast(plain, rank)
    return group.barrier if rank else lambda: group.all_reduce(plain)
