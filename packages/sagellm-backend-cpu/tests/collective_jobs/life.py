"""Groups come, go, and come again; each check joins its own."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from here import CPU, grown, refused, resources, same

from sagellm_backend.cpu.provider import CPUBackendProvider
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.torch_support.collectives import join


def _made_again(here, method):
    for turn in range(6):
        if turn == 1:
            before = resources()
        with here.join(init_method=method) as group:
            same(group.all_reduce(torch.tensor([turn])), torch.tensor([2 * turn]))
            group.subgroup([1, 0]).barrier()
            if here.rank == 0 and turn % 2:
                time.sleep(0.2)  # the other is back before this one has gone
        assert not dist.is_initialized()
    del group
    deadline = time.monotonic() + 5
    while grown(before) and time.monotonic() < deadline:
        time.sleep(0.05)  # sockets and threads of gloo end on their own
    assert not grown(before), (resources(), before)


def groups_over_a_file_can_be_made_again(here):
    _made_again(here, f"file://{here.folder}/again")


def groups_over_a_port_can_be_made_again(here):
    _made_again(here, (here.folder / "address").read_text())


def a_group_can_be_closed_as_soon_as_it_is_joined(here):
    """No rank is failed by one that left before all had connected, or by a file that it removed."""
    for _ in range(100):
        here.join(init_method=f"file://{here.folder}/at_once").close()


def the_last_communicator_ends_the_default_group(here):
    hook = sys.excepthook
    first, second = here.join(), here.join()
    first.close()
    same(second.all_reduce(torch.ones(1)), torch.tensor([2.0]))
    second.close()
    assert not dist.is_initialized()
    assert sys.excepthook is hook


def an_engines_group_is_joined_and_left_alone(here):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{here.folder}/engine",
        rank=here.rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    with refused(InvalidArgumentError, "rank 5 of 9", f"rank {here.rank} of 2"):
        join("cpu", "gloo", CPU, 5, 9, None, 5.0)
    with join("cpu", "gloo", CPU, timeout_s=5.0) as group:
        assert (group.rank, group.world_size) == (here.rank, 2)
        same(group.all_reduce(torch.ones(1)), torch.tensor([2.0]))
        swapped = group.subgroup([1, 0])
        same(swapped.all_gather(torch.tensor([here.rank])), torch.tensor([[1], [0]]))
    late = join("cpu", "gloo", CPU, timeout_s=5.0)
    mine = torch.ones(1)
    dist.all_reduce(mine)
    same(mine, torch.tensor([2.0]))
    dist.destroy_process_group()
    late.close()


def files_left_by_a_crash_do_no_harm(here):
    path = here.folder / "left"
    method = f"file://{path}"
    here.join(init_method=method).close()
    if here.rank == 0:
        store = dist.FileStore(str(path), 2)
        store.set("sagellm/token", "2/an-earlier-run")
        for key in ("2/an-earlier-run/1", "2/an-earlier-run/go"):
            store.add(key, 1)
        kept = path.read_bytes()
        del store
        path.write_bytes(kept)
    here.meet("left")
    if here.rank == 0:
        time.sleep(0.3)  # rank 1 reads the old keys first
    with here.join(init_method=method) as group:
        same(group.all_reduce(torch.ones(1)), torch.tensor([2.0]))


def the_provider_joins(here):
    with CPUBackendProvider() as backend:
        group = backend.communicator(
            rank=here.rank, world_size=2, init_method=here.init_method, timeout_s=20.0
        )
        mine = torch.tensor([here.rank + 1])
        backend.all_reduce(mine, "sum")
        same(mine, torch.tensor([3]))
        same(backend.all_gather(torch.tensor([here.rank])), torch.tensor([[0], [1]]))
    assert group.closed


CHECKS = (
    groups_over_a_file_can_be_made_again,
    groups_over_a_port_can_be_made_again,
    a_group_can_be_closed_as_soon_as_it_is_joined,
    the_last_communicator_ends_the_default_group,
    an_engines_group_is_joined_and_left_alone,
    files_left_by_a_crash_do_no_harm,
    the_provider_joins,
)
