"""Which copies go to the driver as a batch, on which stream, and what is left when one fails."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import simdev
import torch
from fake_cuda.bindings import CUresult

from sagellm_backend.cuda.kv import CUDAKVCopyPlan
from sagellm_backend.errors import KVTransferError

MODULE = simdev.module
BUSY_MS = 1000


def pools(backend, layout, *places):
    """Pools of 8 blocks, all allocated; the bits of each are those of its number and no other's."""
    made = [backend.kv_pool(layout, 8, place) for place in places]
    for number, pool in enumerate(made):
        pool.alloc(8)
        count = pool.pages.numel()
        bits = torch.arange(count, dtype=torch.int16) + number * count
        pool.pages.copy_(bits.view(torch.bfloat16).view(pool.pages.shape))
    backend.synchronize()
    return made


def plan_of(backend, source, target):
    """(plan, what its driver was asked for)."""
    plan = backend.kv_copy_plan(source, target)
    return plan, plan._given._driver.calls


def bits(pool):
    return pool.pages.cpu().clone().view(torch.int16)


@pytest.mark.parametrize(
    ("source", "target", "sizes"),
    [
        ("device", "host", [8]),  # 4 rows, of which each has 2 runs
        ("host", "device", [8]),
        ("simdev:1", "host", [8]),
        ("device", "device", []),
        ("device", "simdev:1", []),
        ("host", "host", []),
    ],
)
def test_batches_are_for_what_crosses_between_host_and_device(
    backend, layout, source, target, sizes
):
    ours, theirs = pools(backend, layout, source, target)
    plan, calls = plan_of(backend, ours, theirs)
    wanted = bits(theirs)
    wanted[:, [5, 6, 1]] = bits(ours)[:, [0, 1, 4]]
    plan.copy([0, 1, 4], [5, 6, 1], backend.create_stream()).wait()
    assert torch.equal(bits(theirs), wanted)
    assert [count for count, _ in calls] == sizes


def test_one_piece_is_torch_s(backend, layout):
    single = replace(layout, num_layers=1, packing="packed")
    plan, calls = plan_of(backend, *pools(backend, single, "device", "host"))
    plan.copy([0, 1, 2], [3, 4, 5]).wait()
    assert not calls
    plan.copy([0, 2], [3, 5]).wait()
    assert [count for count, _ in calls] == [2]


def test_pageable_memory_is_torch_s(backend, layout, monkeypatch):
    ours, theirs = pools(backend, layout, "device", "host")
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: False)
    plan, calls = plan_of(backend, ours, theirs)
    plan.copy([0, 2], [3, 5]).wait()
    assert not calls


def test_without_batches_torch_copies_everything(backend, layout):
    ours, theirs = pools(backend, layout, "device", "host")
    CUDAKVCopyPlan(ours, theirs, MODULE, None).copy([0, 2], [3, 5]).wait()
    assert torch.equal(bits(theirs)[:, [3, 5]], bits(ours)[:, [0, 2]])


def test_a_batch_takes_its_turn_on_the_given_stream_and_nobody_waits(backend, layout):
    ours, theirs = pools(backend, layout, "device", "host")
    plan, calls = plan_of(backend, ours, theirs)
    stream, late = backend.create_stream(), torch.full_like(ours.pages, 3.0)
    backend.synchronize()
    with stream:
        MODULE.sleep(BUSY_MS)
        ours.pages.copy_(late, non_blocking=True)
    began = time.monotonic()
    transfer = plan.copy([0, 2], [3, 5], stream)
    assert time.monotonic() - began < BUSY_MS / 2e3
    assert not transfer.done()
    assert [handle for _, handle in calls] == [stream.native.stream_id]
    transfer.wait()
    assert theirs.pages[:, [3, 5]].eq(3).all()


def test_the_default_stream_is_left_for_one_of_the_plan_s_own_and_joined_again(backend, layout):
    ours, theirs = pools(backend, layout, "host", "device")
    plan, calls = plan_of(backend, ours, theirs)
    late = torch.full_like(theirs.pages, 3.0)
    backend.synchronize()
    assert MODULE.current_stream(0).stream_id == 0
    MODULE.sleep(100)
    theirs.pages.copy_(late, non_blocking=True)  # earlier: the copy must come after it
    wanted = bits(ours)[:, [0, 2]]
    assert plan.copy([0, 2], [3, 5]).done()
    assert torch.equal(bits(theirs)[:, [3, 5]], wanted)
    plan.copy([0, 2], [3, 5])
    handles = {handle for _, handle in calls}
    assert len(handles) == 1
    assert 0 not in handles


@pytest.mark.parametrize("given", [False, True])
def test_a_batch_that_fails_is_a_transfer_error_with_nothing_under_way(backend, layout, given):
    ours, theirs = pools(backend, layout, "device", "host")
    plan, _ = plan_of(backend, ours, theirs)
    driver, before = plan._given._driver, bits(theirs)
    stream = backend.create_stream()
    execute, done = driver._execute, []

    def first_only(*copy):
        if not done:
            with MODULE.stream(torch.Stream(stream_id=copy[3], device_index=0, device_type=20)):
                MODULE.sleep(BUSY_MS)
            execute(*copy)
            done.append(copy)

    driver._execute = first_only
    driver.cuMemcpyBatchAsync, real = failing(driver), driver.cuMemcpyBatchAsync
    with pytest.raises(
        KVTransferError, match="2 KV blocks device-to-host.*NOT_SUPPORTED"
    ) as caught:
        plan.copy([0, 2], [3, 5], stream if given else None)
    assert caught.value.numbers == {"blocks": 2}
    after = bits(theirs)
    time.sleep(0.05)
    assert torch.equal(bits(theirs), after)
    assert (after != before).any(), "what was queued of it had to be waited for"
    assert (after == before)[:, [0, 1, 2, 4, 6, 7]].all()
    driver.cuMemcpyBatchAsync, driver._execute = real, execute
    plan.copy([0, 2], [3, 5], stream if given else None).wait()
    assert torch.equal(bits(theirs)[:, [3, 5]], bits(ours)[:, [0, 2]])


def failing(driver):
    """The call, which ends with an error after some of its copies."""
    real = driver.cuMemcpyBatchAsync

    def call(*arguments):
        real(*arguments)
        return (CUresult.CUDA_ERROR_NOT_SUPPORTED,)

    return call


def test_a_fault_of_the_stream_shows_before_anything_is_queued(backend, layout, monkeypatch):
    ours, theirs = pools(backend, layout, "device", "host")
    plan, calls = plan_of(backend, ours, theirs)
    stream, before = backend.create_stream(), bits(theirs)

    class Lost:
        stream_id, device = stream.native.stream_id, stream.native.device

        def query(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(backend.module, "current_stream", lambda device: Lost())
    with pytest.raises(KVTransferError, match="illegal memory access") as caught:
        plan.copy([0, 2], [3, 5], stream)
    assert "start another" in caught.value.hint
    assert not calls
    assert torch.equal(bits(theirs), before)
