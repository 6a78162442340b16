"""What the provider's copies ask of the runtime: where from, on which stream, and who waits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sagellm_backend import DType, KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=128, block_size=128, dtype=DType.FP16)
WAITS = ("aclrtSynchronizeStream", "aclrtSynchronizeDevice", "aclrtSynchronizeEvent", "pageable")


def named(calls, *names):
    return [call for call in calls if call.name in names]


@pytest.fixture
def pools(backend):
    with backend.kv_pool(LAYOUT, 4) as device, backend.kv_pool(LAYOUT, 4, "host") as host:
        for layer in range(2):
            device.key_cache(layer).fill_(3)
            device.value_cache(layer).fill_(4)
            host.key_cache(layer).zero_()
            host.value_cache(layer).zero_()
        yield device, host


@pytest.mark.parametrize("to_host", [True, False])
def test_swaps_are_asynchronous_on_the_stream_that_was_asked_for(backend, calls, pools, to_host):
    device, host = pools
    source, target = (device, host) if to_host else (host, device)
    plan, stream = backend.kv_copy_plan(source, target), backend.create_stream()
    ids = source.alloc(2), target.alloc(2)
    found = calls(lambda: plan.copy(*ids, stream))
    copies = named(found, "aclrtMemcpyAsync")
    ends = ("device:0", "pinned") if to_host else ("pinned", "device:0")
    assert {(call.detail["from"], call.detail["to"]) for call in copies} == {ends}
    assert {call.stream for call in copies} == {stream.native.npu_stream}
    assert sum(int(call.detail["bytes"]) for call in copies) == 2 * LAYOUT.page_bytes
    assert named(found, *WAITS, "aclrtMemcpy") == []
    records = [call for call in named(found, "aclrtRecordEvent") if call.stream == copies[0].stream]
    assert found.index(records[-1]) > found.index(copies[-1])  # the transfer ends behind them
    stream.synchronize()


def test_a_swap_is_seen_late_without_waiting(backend, pools):
    device, host = pools
    plan, stream = backend.kv_copy_plan(device, host), backend.create_stream()
    with stream:
        busy = torch.ones(1500, 1500, device="npu:0")
        for _ in range(4):
            busy = busy @ busy
    transfer = plan.copy(device.alloc(1), host.alloc(1), stream)
    assert not transfer.done()
    assert float(host.key_cache(0)[0].float().sum()) == 0
    transfer.wait(60)
    assert float(host.key_cache(0)[0].float().mean()) == 3


def test_blocks_of_one_device_move_without_the_host(backend, calls, pools):
    device, _ = pools
    stream = backend.create_stream()
    with backend.kv_pool(LAYOUT, 4) as other:
        plan = backend.kv_copy_plan(device, other)
        ids = device.alloc(3), other.alloc(3)
        found = calls(lambda: plan.copy(*ids, stream))
        assert named(found, *WAITS, "aclrtMemcpy") == []
        moved = [call for call in found if call.name.startswith(("kernel", "aclrtMemcpyAsync"))]
        assert moved
        assert {call.stream for call in moved} == {stream.native.npu_stream}
        stream.synchronize()


def test_a_pageable_copy_is_caught(backend, calls):
    target = backend.empty((1024,), DType.FP32)
    for pinned in (True, False):
        host = torch.ones(1024, pin_memory=pinned)
        found = calls(lambda host=host: target.copy_(host, non_blocking=True))
        assert bool(named(found, *WAITS)) == (not pinned)
        (copy,) = named(found, "aclrtMemcpyAsync", "aclrtMemcpy")
        assert copy.detail["from"] == ("pinned" if pinned else "pageable")


def test_a_steps_metadata_goes_over_in_one_copy_and_nobody_waits(backend, calls):
    from sagellm_backend.attention import AttentionMetadata
    from sagellm_backend.torch_support import step

    metadata = AttentionMetadata.build([1, 1], [130, 140], [[0, 1], [2, 3]], 128)
    found = calls(lambda: step.prepare(metadata, torch.device("npu:0")))
    assert len(named(found, "aclrtMemcpyAsync")) == 1
    assert named(found, *WAITS, "aclrtMemcpy") == []


def test_events_are_recorded_and_waited_for_on_their_streams(backend, calls):
    first, second, event = (
        backend.create_stream(),
        backend.create_stream(),
        backend.create_event(),
    )

    def work():
        first.record_event(event)
        second.wait_event(event)

    found = named(calls(work), "aclrtRecordEvent", "aclrtStreamWaitEvent")
    assert [call.name for call in found] == ["aclrtRecordEvent", "aclrtStreamWaitEvent"]
    assert [call.stream for call in found] == [first.native.npu_stream, second.native.npu_stream]
    assert found[0].detail["event"] == found[1].detail["event"]


def test_work_on_a_wrong_stream_shows(backend, calls):
    stream, x = backend.create_stream(), backend.from_numpy(np.ones((4, 8), np.float32))
    kernel = backend.get_kernel("silu_and_mul")

    def streams(function):
        return {call.stream for call in calls(function) if call.name.startswith("kernel")}

    def inside():
        with stream:
            kernel(x)

    assert streams(inside) == {stream.native.npu_stream}
    assert streams(lambda: kernel(x)) == {torch.npu.current_stream().npu_stream}


@pytest.mark.parametrize("name", ["rms_norm", "silu_and_mul", "linear", "embedding"])
def test_operations_do_not_wait_for_the_device(backend, calls, name):
    x = backend.from_numpy(np.ones((4, 8), np.float32))
    arguments = {
        "rms_norm": (x, x[0].clone(), 1e-6),
        "silu_and_mul": (x,),
        "linear": (x, x),
        "embedding": (backend.from_numpy(np.zeros(3, np.int64)), x),
    }[name]
    kernel = backend.get_kernel(name)
    found = calls(lambda: kernel(*arguments))
    assert any(call.name.startswith("kernel") for call in found)
    assert named(found, *WAITS, "aclrtMemcpy", "kernel waits") == []
