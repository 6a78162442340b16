"""Collectives that move data: what arrives, in which order, and bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.groups import GROUP, bits, join
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

SHAPES = ((), (1,), (7,), (3, 5), (2, 1, 4), (30_001,))


def moved(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """Every dtype that arrays can have for certain: those computed in, those of pools, indices."""
    known = (*capability.supported_dtypes, *capability.kv.dtypes, DType.INT32, DType.INT64)
    return tuple(dict.fromkeys(known))


@case("collective", requires=GROUP, params={"dtype": moved}, world=2)
def gathered_arrays_stand_in_the_order_of_ranks(exam: Exam) -> None:
    """all_gather stacks every rank's bits by rank, scalars included, and leaves the input alone.

    Kills: ranks in the order of their arrival, concatenation for stacking, and bits that change.
    """
    group = join(exam)
    for shape in SHAPES:
        parts = exam.fill((exam.world, *shape), exam["dtype"])
        array = exam.provider.from_numpy(parts[exam.rank])
        found = exam.provider.to_numpy(group.all_gather(array))
        exam.equal_bits(found, parts, f"Arrays of shape {shape}, gathered")
        exam.equal_bits(exam.provider.to_numpy(array), parts[exam.rank], "What was gathered")


@case("collective", requires=GROUP, params={"dtype": moved}, world=3)
def every_root_can_broadcast(exam: Exam) -> None:
    """Broadcast puts each root's bits in place of everybody's, whoever is the root.

    Kills: a root that is always rank 0, and a result that is not in place.
    """
    group = join(exam)
    for root in range(exam.world):
        for shape in SHAPES:
            parts = exam.fill((exam.world, *shape), exam["dtype"])
            array = exam.provider.from_numpy(parts[exam.rank])
            exam.check(group.broadcast(array, root) is array, "broadcast returned another array.")
            exam.equal_bits(exam.provider.to_numpy(array), parts[root], f"What rank {root} sent")
    for stranger in (exam.world, -1, None):
        exam.refuses(InvalidArgumentError, group.broadcast, array, stranger)


@case("collective", requires=GROUP, params={"dtype": moved}, world=3)
def parts_are_exchanged_by_rank(exam: Exam) -> None:
    """all_to_all gives rank i the parts numbered i, in the order of those who sent them.

    Kills: parts that stay, that are turned around, or that come in the order of their arrival.
    """
    group, world = join(exam), exam.world
    for shape in ((), (1,), (5, 3), (10_001,)):
        parts = exam.fill((world, world, *shape), exam["dtype"])
        array = exam.provider.from_numpy(parts[exam.rank])
        found = exam.provider.to_numpy(group.all_to_all(array))
        exam.equal_bits(found, np.ascontiguousarray(parts[:, exam.rank]), "What was received")
        exam.equal_bits(exam.provider.to_numpy(array), parts[exam.rank], "What was sent")
    wrong = exam.provider.from_numpy(exam.fill((world + 1, 2), exam["dtype"]))
    exam.refuses(InvalidArgumentError, group.all_to_all, wrong, says=(world + 1,))


@case("collective", requires=GROUP, params={"dtype": moved}, world=2)
def messages_reach_their_peer_in_order(exam: Exam) -> None:
    """Send and recv carry bits to one peer, the first message first, both ways.

    Kills: messages that overtake each other, and a receiver's array that is not written.
    """
    group, peer = join(exam), 1 - exam.rank
    for shape in SHAPES:
        parts = exam.fill((2, 2, *shape), exam["dtype"])
        for sender in (0, 1):
            for message in parts[sender]:
                array = exam.provider.from_numpy(message)
                if exam.rank == sender:
                    group.send(array, peer)
                    exam.equal_bits(exam.provider.to_numpy(array), message, "What was sent")
                    continue
                into = exam.provider.empty(shape, exam["dtype"])
                exam.check(group.recv(into, peer) is into, "recv returned another array.")
                exam.equal_bits(exam.provider.to_numpy(into), message, f"From rank {sender}")
    array = exam.provider.from_numpy(np.zeros(3, np.int32))
    for call in (group.send, group.recv):
        for bad in (exam.rank, 2, -1):
            exam.refuses(InvalidArgumentError, call, array, bad)


@case("collective", requires=GROUP, world=3)
def empty_arrays_are_no_trouble(exam: Exam) -> None:
    """Arrays without elements go through every collective and keep their shapes.

    Kills: a collective that waits for ever, or crashes, on nothing.
    """
    group, provider = join(exam), exam.provider
    empty = provider.from_numpy(np.empty((0, 4), np.float32))
    exam.check(group.all_reduce(empty) is empty, "all_reduce returned another array.")
    exam.check(group.broadcast(empty, 1) is empty, "broadcast returned another array.")
    for got, wanted in (
        (group.all_gather(empty), (exam.world, 0, 4)),
        (group.reduce_scatter(empty), (0, 4)),
        (group.all_to_all(provider.from_numpy(np.empty((exam.world, 0), np.float32))), (3, 0)),
    ):
        exam.check(tuple(got.shape) == wanted, f"An empty result has shape {got.shape}.")


@case("collective", requires=GROUP, world=2)
def bad_arguments_send_nothing(exam: Exam) -> None:
    """Arrays of others, unknown reductions and closed groups are refused on the rank that errs.

    Nothing has been sent then: the next collective of the group is right. Kills: an argument that
    is found wrong after the peer has begun, and a closed group that hangs.
    """
    group, provider = join(exam), exam.provider
    good = provider.from_numpy(np.full(5, exam.rank + 1, np.int32))
    if exam.rank == 0:
        for bad in (np.zeros(5, np.int32), [1, 2], None, 3.0):
            for call in (group.all_reduce, group.all_gather, group.broadcast, group.all_to_all):
                exam.refuses(InvalidArgumentError, call, bad)
        for op in ("mean", None, 3):
            exam.refuses(InvalidArgumentError, group.all_reduce, good, op)
        integers = provider.from_numpy(np.zeros(4, np.int32))
        exam.refuses(InvalidArgumentError, group.all_reduce, integers, "avg")
        exam.refuses(InvalidArgumentError, group.subgroup, [0, 0])
        exam.refuses(InvalidArgumentError, group.subgroup, [0, 2])
    exam.equal_bits(provider.to_numpy(group.all_reduce(good)), np.full(5, 3, np.int32), "The sum")
    group.close()
    group.close()
    for call in (group.all_reduce, group.all_gather, group.broadcast):
        exam.refuses(UnavailableError, call, good, says=("closed",))
    exam.refuses(UnavailableError, group.barrier, says=("closed",))


@case("collective", requires=GROUP)
def a_group_of_one_is_the_identity(exam: Exam) -> None:
    """Alone, every collective gives back what it was given, in the shapes of the contract.

    Kills: a group of one that needs a network, or that forgets the axis of the ranks.
    """
    group, provider = exam.provider.communicator(0, 1), exam.provider
    values = exam.fill((3, 4), DType.FP32)
    array = provider.from_numpy(values)
    exam.check(group.all_reduce(array) is array, "all_reduce returned another array.")
    exam.check(group.broadcast(array) is array, "broadcast returned another array.")
    work, stacked = group.all_gather(array, async_op=True)
    work.wait()
    single = provider.from_numpy(values[None])
    for got, wanted in (
        (array, values),
        (stacked, values[None]),
        (group.all_gather(array), values[None]),
        (group.reduce_scatter(array), values),
        (group.all_to_all(single), values[None]),
    ):
        exam.equal_bits(provider.to_numpy(got), wanted, "A collective of one rank")
    group.barrier()
    exam.refuses(InvalidArgumentError, group.send, array, 0)


@case("collective")
def protocol_calls_alone_change_nothing(exam: Exam) -> None:
    """all_reduce and all_gather of v0.1 without a group: the identity, and a stack of one.

    Kills: a call that needs a group where there is one process, and arguments taken unchecked.
    """
    provider = exam.provider
    values = exam.fill((2, 3), exam.capability.supported_dtypes[0])
    array = provider.from_numpy(values)
    for op in ("sum", "max", "avg"):
        provider.all_reduce(array, op)
        exam.equal_bits(provider.to_numpy(array), values, f"{op} of one process")
    exam.equal_bits(provider.to_numpy(provider.all_gather(array)), values[None], "all_gather")
    exam.refuses(InvalidArgumentError, provider.all_reduce, array, "mean")
    for call in (provider.all_reduce, provider.all_gather):
        exam.refuses(InvalidArgumentError, call, values)


@case("collective", requires=GROUP, world=2)
def protocol_calls_use_the_first_open_group(exam: Exam) -> None:
    """all_reduce and all_gather of v0.1 work over the first group that is open.

    Kills: a default group that is not set, that is the last, or that stays when it is closed.
    """
    provider = exam.provider
    group = join(exam)
    part = _rank_array(exam)
    array = provider.from_numpy(part)
    provider.all_reduce(array, "sum")
    exam.equal_bits(provider.to_numpy(array), np.full(4, 3, np.int32), "all_reduce of v0.1")
    gathered = provider.to_numpy(provider.all_gather(provider.from_numpy(part)))
    wanted = np.repeat(np.array([[1], [2]], np.int32), 4, axis=1)
    exam.equal_bits(gathered, wanted, "all_gather of v0.1")
    group.close()
    again = join(exam)
    array = provider.from_numpy(part)
    provider.all_reduce(array, "max")
    exam.equal_bits(provider.to_numpy(array), np.full(4, 2, np.int32), "After a second group")
    again.close()


def _rank_array(exam: Exam) -> npt.NDArray[Any]:
    return bits(np.full(4, exam.rank + 1, np.int32))
