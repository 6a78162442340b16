"""The simulated device is a device: out of the host's reach, asynchronous, and correct."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import simdev
import torch

BUSY_MS = 1000


def test_host_access_is_refused():
    tensor = torch.ones(4, device="simdev")
    with pytest.raises(TypeError, match="can't convert simdev"):
        tensor.numpy()


def test_reading_its_addresses_kills_the_process(root):
    script = "import ctypes, simdev, torch; t = torch.ones(4, device='simdev'); "
    script += "print(t.sum().item(), flush=True); ctypes.string_at(t.data_ptr(), 4)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root / "tools",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "4.0\n"
    assert done.returncode == -signal.SIGSEGV


def test_kernels_and_views_agree_with_the_cpu():
    host = torch.randn(6, 8)
    device = host.to("simdev")
    assert device.device.type == "simdev"
    for function in (
        lambda x: x @ x.T,
        lambda x: x[1:5, ::2].softmax(-1),
        lambda x: x.view(3, 2, 8).transpose(0, 1).reshape(4, 12) * 2,
        lambda x: torch.nn.functional.layer_norm(x, (8,)),
        lambda x: x.sort(descending=True)[0].to(torch.bfloat16),
    ):
        assert torch.equal(function(device).cpu(), function(host))


def test_writes_through_a_view_reach_the_base():
    base = torch.zeros(4, 4, device="simdev:1")
    base[:, 1].fill_(3)
    base[torch.tensor([0, 2], device="simdev:1"), 2] = 5
    wanted = torch.zeros(4, 4)
    wanted[:, 1] = 3
    wanted[[0, 2], 2] = 5
    assert torch.equal(base.cpu(), wanted)


@pytest.mark.parametrize("other", ["cpu", "simdev:1"])
def test_arrays_of_two_devices_do_not_mix(other):
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, 2, device="simdev:0") @ torch.ones(2, 2, device=other)


def test_fresh_memory_is_nan_even_when_it_is_reused():
    for _ in range(2):
        tensor = torch.empty(1000, device="simdev")
        assert tensor.isnan().all().item()
        tensor.fill_(1)
        del tensor


def test_copies_to_pinned_memory_return_before_they_are_done():
    source, target = torch.ones(8, device="simdev"), torch.zeros(8).pin_memory()
    assert target.is_pinned()
    stream = simdev.module.Stream(device=0)
    simdev.module.synchronize(0)
    with simdev.module.stream(stream):
        simdev.module.sleep(BUSY_MS)
        began = time.monotonic()
        target.copy_(source, non_blocking=True)
        assert time.monotonic() - began < BUSY_MS / 2e3
    assert not stream.query()
    assert target.sum() == 0
    stream.synchronize()
    assert stream.query()
    assert target.sum() == 8


def test_copies_to_pageable_memory_are_done_on_return():
    source, target = torch.ones(8, device="simdev"), torch.zeros(8)
    simdev.module.sleep(50)
    target.copy_(source, non_blocking=True)
    assert target.sum() == 8


def test_streams_run_beside_each_other_and_events_order_them():
    slow, fast = (simdev.module.Stream(device=0) for _ in range(2))
    cell = torch.zeros(1, device="simdev")
    one, two = torch.ones(1, device="simdev"), torch.full((1,), 2.0, device="simdev")
    simdev.module.synchronize(0)
    behind = simdev.module.Event()
    with simdev.module.stream(slow):
        simdev.module.sleep(BUSY_MS)
        cell.copy_(one)
    behind.record(slow)
    fast.wait_event(behind)
    with simdev.module.stream(fast):
        cell.copy_(two)
    assert not behind.query()
    fast.synchronize()
    assert behind.query()
    assert cell.item() == 2


def test_memory_in_use_by_another_stream_is_not_reused_before():
    simdev.module.empty_cache()
    side, result = simdev.module.Stream(device=0), torch.zeros(5000).pin_memory()
    source = torch.ones(5000, device="simdev")
    simdev.module.synchronize(0)
    address = source.data_ptr()
    with simdev.module.stream(side):
        simdev.module.sleep(BUSY_MS)
        result.copy_(source, non_blocking=True)
    source.record_stream(side)
    del source
    again = torch.zeros(5000, device="simdev")
    assert again.data_ptr() == address
    side.synchronize()
    assert result.eq(1).all()


def test_memory_runs_out_and_comes_back():
    free, total = simdev.module.mem_get_info(1)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.empty(total + 1, dtype=torch.uint8, device="simdev:1")
    half = torch.empty(free // 2, dtype=torch.uint8, device="simdev:1")
    assert simdev.module.memory_allocated(1) >= free // 2
    del half
    simdev.module.empty_cache()
    assert simdev.module.mem_get_info(1)[0] >= free
