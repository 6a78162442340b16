"""Groups over HCCL: how they are made, what they reduce themselves, and how they fail."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from examination import CHIPS
from npu_l0 import hccl

from sagellm_backend.capability import Feature
from sagellm_backend.errors import (
    CapabilityError,
    CommError,
    CommTimeoutError,
    UnavailableError,
)

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def backend_of_torch(monkeypatch):
    hccl.register()
    hccl.MADE.clear()
    for name in hccl.WAITS:
        monkeypatch.delenv(name, raising=False)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def join(make, tmp_path):
    """A group of this process alone, over the backend."""

    def build(chip="A2", timeout_s=30.0):
        return make(CHIPS[chip]).communicator(0, 1, f"file://{tmp_path}/{time.time()}", timeout_s)

    return build


def test_a_group_is_made_as_torch_npu_takes_it_and_the_environment_is_left(join):
    before = dict(os.environ)
    with join(timeout_s=7.5) as group:
        assert [item["timeout"] for item in hccl.MADE] == [timedelta(seconds=7.5)]
        assert group.backend == "hccl"
        assert group._group.waits
        assert dict(os.environ) == before
    assert not dist.is_initialized()


@pytest.mark.parametrize(("name", "value", "waits"), [(0, "0", False), (1, "1", True)])
def test_a_choice_in_the_environment_is_kept(join, monkeypatch, name, value, waits):
    monkeypatch.setenv(hccl.WAITS[name], value)
    if waits:
        with join() as group:
            assert group._group.waits
    else:
        with pytest.raises(CommError, match="the watchdog"):
            join()
    assert os.environ[hccl.WAITS[name]] == value


def test_a_group_that_cannot_connect_is_left_again(join, monkeypatch):
    said = "HCCL function error: hcclCommInitRootInfoConfig, error code is 4"
    monkeypatch.setattr(hccl.ProcessGroup, "refuses", said)
    with pytest.raises(CommError, match=r"barrier failed on rank 0 of 1.*error code is 4"):
        join()
    assert not dist.is_initialized()


def test_a_peer_that_never_comes_is_a_timeout_and_the_group_is_unusable(join, monkeypatch):
    group = join(timeout_s=0.3)
    array = group_array(group)
    monkeypatch.setattr(hccl.ProcessGroup, "hangs", True)
    start = time.monotonic()
    with pytest.raises(CommTimeoutError, match="all_reduce failed on rank 0 of 1"):
        group.all_reduce(array)
    assert 0.3 <= time.monotonic() - start < 3
    with pytest.raises(UnavailableError, match="cannot be used any more"):
        group.all_reduce(array)
    group.close()


def test_an_asynchronous_call_returns_at_once_and_can_be_waited_for(join, monkeypatch):
    group = join()
    array = group_array(group)
    work = group.all_reduce(array, async_op=True)
    work.wait(5)
    monkeypatch.setattr(hccl.ProcessGroup, "hangs", True)
    start = time.monotonic()
    work = group.all_reduce(array, async_op=True)
    assert time.monotonic() - start < 1
    with pytest.raises(CommTimeoutError, match="not ended"):
        work.wait(0.1)
    group.close()


def group_array(group):
    return torch.ones(4, device=group.device)


@pytest.mark.parametrize("chip", CHIPS)
def test_every_family_with_hccl_offers_groups(make, chip):
    assert Feature.COLLECTIVE in make(CHIPS[chip]).capability().features


def test_the_310b_has_none(make):
    backend = make(240)
    assert backend.family.name == "310B"
    assert Feature.COLLECTIVE not in backend.capability().features
    with pytest.raises(CapabilityError, match="collective"):
        backend.communicator(0, 2, "file:///none")


PAIR = """
    import sys, types
    import numpy as np, torch
    sys.path += {path!r}
    import l0_backend
    from npu_l0 import hccl
    hccl.register()
    sys.modules["torch_npu"] = types.SimpleNamespace(_C=hccl.EXTENSION)
    from sagellm_backend import DType
    backend = l0_backend.build()
    type(backend).comm_backend = "hccl"
    backend.__dict__.pop("_declared", None)
    rank = int(sys.argv[1])
    group = backend.communicator(rank, 2, "file://" + sys.argv[2], 60)
    near = dict(rtol=1e-2, atol=1e-2)
    for name in ("fp32", "fp16", "bf16", "int32", "int64", "int8"):
        dtype = DType.parse(name)
        if dtype not in backend._array_dtypes():
            continue
        host = [np.array([3, 5 + r, 2 * r + 1, 6], np.float32) for r in range(2)]
        for op, f in (("sum", np.add), ("prod", np.multiply), ("max", np.maximum), ("min", np.minimum)):
            array = backend.from_numpy(host[rank].astype(dtype.numpy))
            got = backend.to_numpy(group.all_reduce(array, op)).astype(np.float32)
            np.testing.assert_allclose(got, f(*host), **near, err_msg=f"{{name}} {{op}}")
            part = backend.from_numpy(host[rank].astype(dtype.numpy))
            got = backend.to_numpy(group.reduce_scatter(part, op)).astype(np.float32)
            np.testing.assert_allclose(got, f(*host)[2 * rank : 2 * rank + 2], **near)
        if name.startswith("int"):
            array = backend.from_numpy(host[rank].astype(dtype.numpy))
            got = backend.to_numpy(group.all_reduce(array, "bxor"))
            wanted = host[0].astype(dtype.numpy) ^ host[1].astype(dtype.numpy)
            assert (got == wanted).all(), name
        else:
            array = backend.from_numpy(host[rank].astype(dtype.numpy))
            work = group.all_reduce(array, "avg", async_op=True)
            work.wait()
            got = backend.to_numpy(array).astype(np.float32)
            np.testing.assert_allclose(got, sum(host) / 2, **near)
    mine = backend.from_numpy(np.full((2, 3), rank, np.int32))
    assert (backend.to_numpy(group.all_to_all(mine))[:, 0] == [0, 1]).all()
    assert (backend.to_numpy(group.broadcast(mine, root=1)) == 1).all()
    if rank:
        group.send(mine, 0)
    else:
        assert (backend.to_numpy(group.recv(mine, 1)) == 1).all()
    sub = group.subgroup([0, 1])
    sub.barrier()
    group.barrier()
    group.close()
    print("done")
"""


@pytest.mark.parametrize("chip", ["A2", "310P"])
def test_two_processes_reduce_what_hccl_does_and_what_it_does_not(tmp_path, chip):
    path = [str(HERE), str(HERE.parents[3] / "tools")]
    script = textwrap.dedent(PAIR.format(path=path))
    environ = {**os.environ, "L0_CHIP": str(CHIPS[chip]), "OMP_NUM_THREADS": "1"}
    ends = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(tmp_path / "meet")],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for end in ends:
        out, err = end.communicate(timeout=120)
        assert out == "done\n", err
