"""Two ranks and what goes wrong between them; each check joins its own group."""

from __future__ import annotations

import os
import time

import torch
from here import CPU, refused, same

from sagellm_backend.errors import CommError, CommTimeoutError, UnavailableError
from sagellm_backend.torch_support.collectives import join


def disagreement_is_found_where_asked_for(here):
    os.environ["SAGELLM_CHECK_COLLECTIVES"] = "1"
    try:
        group = here.join()
    finally:
        del os.environ["SAGELLM_CHECK_COLLECTIVES"]
    rank = here.rank
    with group:
        for call in (
            lambda: group.all_reduce(torch.ones(4 + rank)),
            lambda: group.all_reduce(torch.ones(4, dtype=(torch.int32, torch.float32)[rank])),
            lambda: group.all_reduce(torch.ones(4), ("sum", "max")[rank]),
            lambda: group.all_gather(torch.ones(4, rank)),
            lambda: group.broadcast(torch.ones(4), rank),
            lambda: group.barrier() if rank else group.all_reduce(torch.ones(4)),
            lambda: group.subgroup([rank]),
        ):
            with refused(CommError, "rank 0: ", "rank 1: ", "disagree"):
                call()
        same(group.all_reduce(torch.ones(1)), torch.tensor([2.0]))
        same(group.all_gather(torch.tensor([rank])), torch.tensor([[0], [1]]))


def a_late_peer_is_a_timeout(here):
    group = here.join(timeout_s=1.0)
    here.meet("late")
    if here.rank == 1:
        time.sleep(1.8)
        with refused(CommError, "rank 1 of 2"):
            group.all_reduce(torch.ones(4))
    else:
        start = time.monotonic()
        with refused(CommTimeoutError, "all_reduce", "rank 0 of 2", "timeout 1 s"):
            group.all_reduce(torch.ones(4))
        assert 0.9 < time.monotonic() - start < 15
    with refused(UnavailableError, "cannot be used any more", "all_reduce failed"):
        group.barrier()
    group.close()
    here.meet("late end")


def every_wait_has_a_timeout(here):
    waits = {
        "barrier": lambda g: g.barrier(),
        "recv": lambda g: g.recv(torch.ones(3), 1),
        "async": lambda g: g.all_gather(torch.ones(3), async_op=True)[0].wait(),
        "subgroup": lambda g: g.subgroup([0, 1]),
    }
    for name, wait in waits.items():
        group = here.join(timeout_s=1.0)
        if here.rank == 0:
            start = time.monotonic()
            with refused(CommTimeoutError, "rank 0 of 2"):
                wait(group)
            assert time.monotonic() - start < 15
        here.meet(name)
        group.close()


def a_rank_that_is_taken_is_refused(here):
    """Both processes say that they are rank 1, so rank 0 never comes; then one is rank 0."""
    with refused(CommTimeoutError, "rank 0 did not come"):
        here.join(0.3, f"file://{here.folder}/nobody", rank=1)
    if here.rank == 0:
        with refused(CommTimeoutError, "ranks 1 of 3 did not come"):
            join("cpu", "gloo", CPU, 0, 3, f"file://{here.folder}/three", 1.0)
    else:
        with refused(CommTimeoutError, "not every other rank came"):
            join("cpu", "gloo", CPU, 2, 3, f"file://{here.folder}/three", 0.8)
    here.meet("taken")
    world = 2 + here.rank
    with refused(CommTimeoutError, "waits for a group of 2" if here.rank else "ranks 1 of 2"):
        join("cpu", "gloo", CPU, here.rank, world, f"file://{here.folder}/sizes", 0.8)


def a_group_can_be_made_after_a_failure(here):
    with here.join() as group:
        same(group.all_reduce(torch.ones(1)), torch.tensor([2.0]))


CHECKS = (
    disagreement_is_found_where_asked_for,
    a_late_peer_is_a_timeout,
    every_wait_has_a_timeout,
    a_rank_that_is_taken_is_refused,
    a_group_can_be_made_after_a_failure,
)
