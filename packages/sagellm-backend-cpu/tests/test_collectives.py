"""Collectives between real processes, over gloo. The checks themselves are in collective_jobs/."""

from __future__ import annotations

import ast
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sagellm_backend.errors import (
    CapabilityError,
    CommError,
    CommTimeoutError,
    InvalidArgumentError,
    UnavailableError,
)
from sagellm_backend.torch_support.collectives import join

JOBS = Path(__file__).parent / "collective_jobs"
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CPU = torch.device("cpu")
LIMIT_S = 120


def checks_of(job):
    """The names in a job's CHECKS, read without running it."""
    for node in ast.parse((JOBS / f"{job}.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "CHECKS":
            return [element.id for element in node.value.elts]
    raise AssertionError(f"{job} has no CHECKS")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def outcomes(folder, rank):
    path = folder / f"{rank}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def run(commands, folder):
    """Start all commands, wait for them, and return their exit statuses and what they printed."""
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCH_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    logs = [folder / f"log.{index}" for index in range(len(commands))]
    processes = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as sink:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command], stdout=sink, stderr=sink, env=environment
                    )
                )
        deadline = time.monotonic() + LIMIT_S
        statuses = [process.wait(deadline - time.monotonic()) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return statuses, "\n".join(log.read_text() for log in logs)


def run_job(job, world, folder):
    (folder / "address").write_text(f"tcp://127.0.0.1:{free_port()}")
    method = f"file://{folder}/group"
    arguments = [(job, str(rank), str(world), method, str(folder)) for rank in range(world)]
    return run([(str(JOBS / "worker.py"), *each) for each in arguments], folder)


@pytest.mark.parametrize("job", ["pair", "life", "failures"])
def test_two_processes(job, tmp_path):
    statuses, printed = run_job(job, 2, tmp_path)
    assert statuses == [0, 0], printed
    for rank in range(2):
        assert outcomes(tmp_path, rank) == dict.fromkeys(checks_of(job), "ok")


def test_three_processes_of_which_one_dies(tmp_path):
    statuses, printed = run_job("trio", 3, tmp_path)
    assert statuses == [0, 0, 9], printed
    for rank in range(2):
        assert outcomes(tmp_path, rank) == dict.fromkeys(checks_of("trio"), "ok")


def test_multiprocessing_spawn(tmp_path, monkeypatch):
    # A spawned child imports the function by name, from the parent's path.
    monkeypatch.syspath_prepend(str(JOBS))
    spawned = importlib.import_module("spawned")
    context = multiprocessing.get_context("spawn")
    method = f"file://{tmp_path}/group"
    ranks = [
        context.Process(target=spawned.work, args=(rank, 2, method, str(tmp_path)))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(LIMIT_S)
    assert [process.exitcode for process in ranks] == [0, 0]
    told = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert told == {"[11.0, 11.0, 11.0] [[1.0, 1.0, 1.0], [10.0, 10.0, 10.0]]"}


def test_torchrun(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    worker = (str(JOBS / "worker.py"), "torchrun", "-", "2", "-", str(tmp_path))
    statuses, printed = run([(*launcher, *worker)], tmp_path)
    assert statuses == [0], printed
    for rank in range(2):
        assert outcomes(tmp_path, rank) == {"torchrun_gives_the_group": "ok"}


@pytest.fixture
def no_launcher(monkeypatch):
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def alone(no_launcher):
    with join("cpu", "gloo", CPU, world_size=1) as group:
        yield group


class TestOneProcess:
    def test_is_the_identity(self, alone):
        array = torch.arange(6.0).reshape(2, 3)
        before = array.clone()
        for op in ("sum", "max", "min", "prod", "avg"):
            assert alone.all_reduce(array, op) is array
        assert alone.broadcast(array) is array
        assert torch.equal(alone.all_gather(array), before[None])
        assert torch.equal(alone.reduce_scatter(array), before)
        assert torch.equal(alone.all_to_all(array[None]), before[None])
        assert torch.equal(array, before)
        alone.barrier()

    def test_results_are_copies(self, alone):
        array = torch.zeros(1, 3)
        for made in (alone.all_gather(array), alone.reduce_scatter(array), alone.all_to_all(array)):
            made.fill_(1.0)
        assert not array.any()

    def test_async(self, alone):
        work = alone.all_reduce(torch.ones(2), async_op=True)
        assert work.done()
        work.wait(1.0)
        work, stacked = alone.all_gather(torch.ones(2), async_op=True)
        work.wait()
        assert stacked.shape == (1, 2)

    def test_refuses_what_a_larger_group_refuses(self, alone):
        with pytest.raises(InvalidArgumentError, match="ndarray"):
            alone.all_reduce(np.ones(2))
        with pytest.raises(InvalidArgumentError, match="contiguous"):
            alone.all_gather(torch.ones(2, 2).T)
        with pytest.raises(InvalidArgumentError, match="integers"):
            alone.all_reduce(torch.ones(2), "bxor")
        with pytest.raises(CapabilityError, match="float8"):
            alone.all_reduce(torch.ones(2).to(torch.float8_e4m3fn))
        with pytest.raises(InvalidArgumentError, match="itself"):
            alone.send(torch.ones(2), 0)

    def test_subgroup_and_close(self, alone):
        child = alone.subgroup([0])
        assert (child.rank, child.world_size) == (0, 1)
        alone.close()
        with pytest.raises(UnavailableError, match="closed"):
            alone.barrier()

    def test_needs_no_torch_distributed(self, alone):
        assert not torch.distributed.is_initialized()

    def test_of_the_launcher(self, monkeypatch):
        for name, value in zip(LAUNCH_VARIABLES, ("0", "1", "localhost", "1"), strict=True):
            monkeypatch.setenv(name, value)
        with join("cpu", "gloo", CPU) as group:
            assert (group.rank, group.world_size) == (0, 1)


@pytest.mark.usefixtures("no_launcher")
class TestJoining:
    def test_names_every_missing_variable(self, monkeypatch):
        with pytest.raises(
            InvalidArgumentError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"
        ):
            join("cpu", "gloo", CPU)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        with pytest.raises(InvalidArgumentError, match="known: MASTER_PORT not given") as caught:
            join("cpu", "gloo", CPU, world_size=2)
        assert "torchrun" in caught.value.hint

    def test_refuses_a_variable_that_is_no_number(self, monkeypatch):
        monkeypatch.setenv("RANK", "first")
        with pytest.raises(InvalidArgumentError, match="RANK is 'first'"):
            join("cpu", "gloo", CPU, world_size=2, init_method="tcp://127.0.0.1:1")

    @pytest.mark.parametrize(
        "method",
        [
            "tcp://localhost",
            "tcp://:29500",
            "tcp://h:99999",
            "mpi://h:1",
            "",
            "file://x/y",
            7,
            "file:///no/such/folder/at/all",
            "file:///",
        ],
    )
    def test_refuses_what_is_no_address(self, method):
        with pytest.raises(InvalidArgumentError, match=r"address|file in a folder"):
            join("cpu", "gloo", CPU, 0, 2, method, 1.0)

    @pytest.mark.parametrize(
        ("rank", "world", "timeout"),
        [
            (2, 2, 1.0),
            (-1, 2, 1.0),
            (0, 0, 1.0),
            (True, 2, 1.0),
            (0, 2.0, 1.0),
            (1, 1, 1.0),
            (0, 2, 0),
            (0, 2, float("inf")),
            (0, 2, 1e300),
            (0, 2, "1"),
        ],
    )
    def test_refuses_bad_numbers(self, rank, world, timeout):
        with pytest.raises(InvalidArgumentError):
            join("cpu", "gloo", CPU, rank, world, None, timeout)

    def test_refuses_a_backend_that_torch_lacks(self):
        with pytest.raises(CapabilityError, match="collectives over no_such"):
            join("cpu", "no_such", CPU, 0, 2, "tcp://127.0.0.1:1", 1.0)

    @pytest.mark.parametrize("kind", ["tcp", "file"])
    def test_names_who_did_not_come(self, kind, tmp_path):
        method = f"file://{tmp_path}/group" if kind == "file" else f"tcp://127.0.0.1:{free_port()}"
        start = time.monotonic()
        with pytest.raises(CommTimeoutError, match="ranks 1, 2 of 3 did not come"):
            join("cpu", "gloo", CPU, 0, 3, method, 0.3)
        with pytest.raises(CommTimeoutError, match=r"rank 0 did not come|join failed on rank 1"):
            join("cpu", "gloo", CPU, 1, 3, method + "x" * (kind == "file"), 0.5)
        assert time.monotonic() - start < 8
        assert not torch.distributed.is_initialized()

    def test_a_port_that_is_taken_is_an_error_at_once(self):
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            address = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
            start = time.monotonic()
            with pytest.raises(CommError, match="join failed on rank 0 of 2"):
                join("cpu", "gloo", CPU, 0, 2, address, 30.0)
            assert time.monotonic() - start < 20

    def test_a_join_that_fails_late_leaves_no_group(self, monkeypatch, tmp_path):
        real = torch.distributed.init_process_group

        def fail_late(*args, **kwargs):
            real(*args, **kwargs)
            raise RuntimeError("the barrier of the store broke")

        monkeypatch.setattr(torch.distributed, "init_process_group", fail_late)
        with pytest.raises(CommError, match="the barrier of the store broke"):
            join("cpu", "gloo", CPU, 0, 1, f"file://{tmp_path}/group", 5.0)
        assert not torch.distributed.is_initialized()
