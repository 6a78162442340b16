"""Groups over NCCL, with gloo in its place: how they are made, wait, and fail."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sagellm_backend.cuda.collectives import NCCLCommunicator
from sagellm_backend.cuda.provider import CUDAProvider, DCUProvider
from sagellm_backend.errors import CommTimeoutError, UnavailableError
from sagellm_backend.torch_support import collectives

WAITS = NCCLCommunicator.waits[0]


class Handle:
    """What torch gives for a collective that goes on for ever."""

    def __init__(self):
        self.waited = 0

    def is_completed(self):
        return False

    def wait(self):
        self.waited += 1
        raise RuntimeError("Work timed out in blocking wait (TORCH_NCCL_BLOCKING_WAIT=1).")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in NCCLCommunicator.waits:
        monkeypatch.delenv(name, raising=False)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def join(tmp_path):
    """A group of this process alone."""

    def made(timeout_s=30.0):
        address = f"file://{tmp_path}/{time.monotonic_ns()}"
        device = torch.device("cpu")
        return collectives.join("cuda", "gloo", device, 0, 1, address, timeout_s, NCCLCommunicator)

    return made


@pytest.mark.parametrize(("chosen", "seen"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_groups_wait_on_the_host_unless_the_environment_says_so(join, monkeypatch, chosen, seen):
    if chosen is not None:
        monkeypatch.setenv(WAITS, chosen)
    before, found, real = dict(os.environ), [], dist.init_process_group

    def watched(*arguments, **options):
        found.append(os.environ.get(WAITS))
        return real(*arguments, **options)

    monkeypatch.setattr(dist, "init_process_group", watched)
    with join() as group:
        array = torch.arange(4.0)
        assert group.all_reduce(array).tolist() == [0, 1, 2, 3]
        assert group.all_gather(array).tolist() == [[0, 1, 2, 3]]
        work = group.all_reduce(array, "avg", async_op=True)
        work.wait(5)
        group.barrier()
    assert found == [seen]
    assert dict(os.environ) == before


def test_a_peer_that_never_comes_is_a_timeout_and_its_collective_is_aborted(join, monkeypatch):
    group, handle = join(timeout_s=0.3), Handle()
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: handle)
    start = time.monotonic()
    with pytest.raises(CommTimeoutError, match=r"all_reduce failed on rank 0 .* after 0\.[3-9]"):
        group.all_reduce(torch.ones(4))
    assert 0.3 <= time.monotonic() - start < 5
    assert handle.waited == 1
    with pytest.raises(UnavailableError, match="cannot be used any more"):
        group.all_reduce(torch.ones(4))
    group.close()
    assert not dist.is_initialized()


def test_a_group_of_torch_s_own_way_is_only_ordered(join, monkeypatch):
    monkeypatch.setenv(WAITS, "0")
    order = []
    handle = SimpleNamespace(wait=lambda: order.append("wait"))  # whoever polls it is found out
    with join() as group:
        monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: handle)
        group.all_reduce(torch.ones(4))
    assert order == ["wait"]


@pytest.mark.parametrize("provider", [CUDAProvider, DCUProvider])
def test_both_backends_join_such_groups(provider):
    found = []
    stand_in = SimpleNamespace(_join=lambda *arguments: found.append(arguments))
    provider._communicator(stand_in, 1, 2, "tcp://host:1", 7.0)
    assert found == [(1, 2, "tcp://host:1", 7.0, NCCLCommunicator)]
    assert provider.comm_backend == "nccl"
