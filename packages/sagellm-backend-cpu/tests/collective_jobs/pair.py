"""Two ranks in good health, one group for all checks."""

from __future__ import annotations

import gc
import time

import torch
import torch.distributed as dist
from here import BINARY, FLOATS, INTEGERS, MOVED, SHAPES, refused, same, values

from sagellm_backend.errors import (
    CapabilityError,
    CommTimeoutError,
    InvalidArgumentError,
    UnavailableError,
)


def all_reduce_is_exact(here, group):
    for dtype in (*INTEGERS, *FLOATS):
        ops = list(BINARY)[: None if dtype in INTEGERS else 4]
        for op in ops:
            for shape in (*SHAPES, (1001,)):
                mine = values(here.rank, shape, dtype)
                assert group.all_reduce(mine, op) is mine
                both = (values(0, shape, dtype), values(1, shape, dtype))
                same(mine, BINARY[op](*both))


def average_is_the_sum_divided(here, group):
    for dtype in FLOATS:
        mine = values(here.rank, (9,), dtype)
        total = values(0, (9,), dtype) + values(1, (9,), dtype)
        same(group.all_reduce(mine, "avg"), total / 2)


def integers_wrap_around(here, group):
    same(
        group.all_reduce(torch.tensor([100], dtype=torch.int8)), torch.tensor([-56]).to(torch.int8)
    )


def movement_keeps_every_bit(here, group):
    for dtype in MOVED:
        for shape in SHAPES:
            ours = [values(rank, shape, dtype) for rank in range(2)]
            same(group.all_gather(ours[here.rank]), torch.stack(ours))
            for root in range(2):
                mine = ours[here.rank].clone()
                assert group.broadcast(mine, root) is mine
                same(mine, ours[root])
            parts = [values(rank, (2, *shape), dtype, salt=1) for rank in range(2)]
            received = group.all_to_all(parts[here.rank])
            same(received, torch.stack([parts[0][here.rank], parts[1][here.rank]]))
            into = torch.zeros(shape).to(dtype)
            if here.rank == 0:
                group.send(ours[0], 1)
                group.recv(into, 1)
            else:
                assert group.recv(into, 0) is into
                group.send(ours[1], 0)
            same(into, ours[here.other])


def reduce_scatter_gives_each_its_part(here, group):
    for dtype in (*INTEGERS, *FLOATS):
        ours = [values(rank, (6, 5), dtype) for rank in range(2)]
        kept = ours[here.rank].clone()
        part = group.reduce_scatter(ours[here.rank])
        same(part, (ours[0] + ours[1])[3 * here.rank : 3 * here.rank + 3])
        same(ours[here.rank], kept)
    mine = torch.tensor([2.0, 4.0]) * (here.rank + 1)
    same(group.reduce_scatter(mine, "avg"), torch.tensor([[3.0], [6.0]])[here.rank])


def barrier_waits(here, group):
    start = time.monotonic()
    group.barrier()
    if here.rank == 1:
        time.sleep(0.3)
    group.barrier()
    assert time.monotonic() - start > 0.25


def async_work_ends_when_waited_for(here, group):
    here.meet("async")
    if here.rank == 1:
        time.sleep(0.5)
    mine = torch.full((4,), here.rank + 1.0)
    work = group.all_reduce(mine, "avg", async_op=True)
    if here.rank == 0:
        assert not work.done()
        with refused(CommTimeoutError, "all_reduce", "still under way"):
            work.wait(0.05)
        with refused(InvalidArgumentError):
            work.wait(-1)
    work.wait()
    work.wait(1.0)
    assert work.done()
    same(mine, torch.full((4,), 1.5))


def async_work_keeps_its_arrays(here, group):
    works = [group.all_gather(torch.full((50_000,), float(i)), async_op=True) for i in range(8)]
    gc.collect()
    for i, (work, stacked) in enumerate(works):
        work.wait()
        same(stacked, torch.full((2, 50_000), float(i)))
    work, part = group.reduce_scatter(torch.arange(4.0), async_op=True)
    work.wait()
    same(part, 2 * torch.arange(4.0)[2 * here.rank : 2 * here.rank + 2])
    work, received = group.all_to_all(torch.full((2, 1), here.rank), async_op=True)
    work.wait()
    same(received, torch.tensor([[0], [1]]))
    root = torch.tensor([here.rank])
    group.broadcast(root, 1, async_op=True).wait()
    same(root, torch.tensor([1]))


def misuse_sends_nothing(here, group):
    good = torch.ones(4)
    for bad, words in (
        ([1.0, 2.0], "list"),
        (good.numpy(), "ndarray"),
        (torch.ones(4, device="meta"), "meta"),
        (torch.ones(4, 4).T, "contiguous"),
        (torch.ones(4).to_sparse(), "contiguous"),
    ):
        # Only one rank asks: had anything been sent, the rest of this job would go wrong.
        if here.rank == 0:
            with refused(InvalidArgumentError, words):
                group.all_reduce(bad)
            with refused(InvalidArgumentError, words):
                group.send(bad, 1)
    if here.rank == 1:
        return
    for call in (
        lambda: group.all_reduce(good, "median"),
        lambda: group.all_reduce(good, "band"),
        lambda: group.all_reduce(torch.ones(4, dtype=torch.int32), "avg"),
        lambda: group.reduce_scatter(torch.ones(3)),
        lambda: group.reduce_scatter(torch.ones(())),
        lambda: group.all_to_all(torch.ones(4)),
        lambda: group.broadcast(good, 2),
        lambda: group.broadcast(good, -1),
        lambda: group.send(good, 0),
        lambda: group.recv(good, True),
        lambda: group.subgroup([0, 0]),
        lambda: group.subgroup([]),
        lambda: group.subgroup([0, 2]),
    ):
        with refused(InvalidArgumentError):
            call()
    for dtype in (torch.float8_e4m3fn, torch.bool):
        with refused(CapabilityError, "cpu", str(dtype)):
            group.all_reduce(torch.ones(4).to(dtype))


def arrays_without_elements_are_nothing(here, group):
    empty = torch.empty((2, 0))
    assert group.all_reduce(empty) is empty
    assert group.broadcast(empty) is empty
    assert group.all_gather(empty).shape == (2, 2, 0)
    assert group.reduce_scatter(empty).shape == (1, 0)
    assert group.all_to_all(empty).shape == (2, 0)
    work = group.all_reduce(empty, async_op=True)
    work.wait()
    assert work.done()
    if here.rank == 0:  # one side alone: nothing is sent
        group.send(empty, 1)
        group.recv(empty, 1)


def parameters_can_be_moved(here, group):
    weight = torch.nn.Parameter(torch.full((3,), float(here.rank)))
    group.broadcast(weight, 1)
    group.all_reduce(weight)
    same(weight.detach(), torch.full((3,), 2.0))
    assert not group.all_gather(weight).requires_grad
    with torch.inference_mode():
        same(group.all_reduce(torch.ones(2)), torch.full((2,), 2.0))


def subgroups_have_their_own_order(here, group):
    reversed_ = group.subgroup([1, 0])
    assert (reversed_.rank, reversed_.world_size) == (1 - here.rank, 2)
    same(reversed_.all_gather(torch.tensor([here.rank])), torch.tensor([[1], [0]]))
    alone = group.subgroup([1])
    assert (alone is None) == (here.rank == 0)
    if alone is not None:
        same(alone.all_reduce(torch.ones(2)), torch.ones(2))
    # Two groups, interleaved.
    first, second = torch.ones(3), torch.ones(3)
    works = [group.all_reduce(first, async_op=True), reversed_.all_reduce(second, async_op=True)]
    for work in reversed(works):
        work.wait()
    same(first + second, torch.full((3,), 4.0))
    reversed_.close()
    with refused(UnavailableError, "closed"):
        reversed_.barrier()
    group.barrier()


def a_second_communicator_is_independent(here, group):
    second = here.join()
    same(second.all_reduce(torch.ones(1)), torch.tensor([2.0]))
    second.close()
    same(group.all_reduce(torch.ones(1)), torch.tensor([2.0]))


def closing_closes_subgroups(here, group):
    child = group.subgroup([0, 1])
    group.close()
    group.close()
    assert child.closed
    assert not dist.is_initialized()
    with refused(UnavailableError, "closed"):
        group.all_reduce(torch.ones(1))


CHECKS = (
    all_reduce_is_exact,
    average_is_the_sum_divided,
    integers_wrap_around,
    movement_keeps_every_bit,
    reduce_scatter_gives_each_its_part,
    barrier_waits,
    async_work_ends_when_waited_for,
    async_work_keeps_its_arrays,
    misuse_sends_nothing,
    arrays_without_elements_are_nothing,
    parameters_can_be_moved,
    subgroups_have_their_own_order,
    a_second_communicator_is_independent,
    closing_closes_subgroups,
)
