"""Three ranks, where the order of a sum matters; one of them dies in the end."""

from __future__ import annotations

import os
import time

import torch
from here import FLOATS, refused, same, values

from sagellm_backend.errors import CapabilityError, CommError, UnavailableError


def sums_have_the_same_bits_everywhere(here, group):
    for dtype in FLOATS:
        for size in (1, 5, 1000, 100_003):
            total = group.all_reduce(values(here.rank, (size,), dtype))
            for other in group.all_gather(total):
                same(other, total)
            exact = sum(values(rank, (size,), dtype).double() for rank in range(3))
            scale = sum(values(rank, (size,), dtype).double().abs() for rank in range(3))
            error = (total.double() - exact).abs()
            assert bool((error <= 3 * torch.finfo(dtype).eps * scale).all())
            again = group.all_reduce(values(here.rank, (size,), dtype))
            same(again, total)


def three_ranks_keep_their_order(here, group):
    same(group.all_gather(torch.tensor(here.rank)), torch.arange(3))
    sent = torch.tensor([10 * here.rank + to for to in range(3)])
    same(group.all_to_all(sent), torch.tensor([10 * by + here.rank for by in range(3)]))
    part = group.reduce_scatter(torch.arange(6))
    same(part, 3 * torch.arange(6)[2 * here.rank : 2 * here.rank + 2])


def some_ranks_make_a_group(here, group):
    some = group.subgroup([2, 0])
    assert (some is None) == (here.rank == 1)
    if some is not None:
        assert some.rank == (0 if here.rank == 2 else 1)
        same(some.all_gather(torch.tensor(here.rank)), torch.tensor([2, 0]))
        same(some.broadcast(torch.tensor([here.rank]), 0), torch.tensor([2]))
        value = torch.tensor([here.rank + 7])
        if some.rank == 0:
            some.send(value, 1)
        else:
            same(some.recv(value, 0), torch.tensor([9]))
        with refused(CapabilityError, "subgroup of a subgroup", "cpu"):
            some.subgroup([1, 0])
    group.barrier()


def a_dead_peer_is_an_error(here, group):
    group.barrier()
    if here.rank == 2:
        time.sleep(0.3)
        os._exit(9)
    start = time.monotonic()
    with refused(CommError, "all_reduce", f"rank {here.rank} of 3"):
        group.all_reduce(torch.ones(100))
    assert time.monotonic() - start < 15
    with refused(UnavailableError, "cannot be used any more"):
        group.all_reduce(torch.ones(100))
    group.close()


CHECKS = (
    sums_have_the_same_bits_everywhere,
    three_ranks_keep_their_order,
    some_ranks_make_a_group,
    a_dead_peer_is_an_error,
)
