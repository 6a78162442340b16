"""AcceleratorProvider on a torch device that is not the CPU."""

from __future__ import annotations

import gc
import threading
import time
import types
from dataclasses import replace

import numpy as np
import pytest
import simdev
import torch

from sagellm_backend import DType
from sagellm_backend.capability import Feature
from sagellm_backend.errors import (
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.torch_support import step

MODULE = simdev.module


def changed_module(*words, **others):
    """The device module, lacking some names and with others changed; what is left works."""
    kept = {name: value for name, value in vars(MODULE).items() if name not in words}
    return types.SimpleNamespace(**{**kept, **others})


def test_what_a_full_module_offers(backend):
    assert backend._features() == {
        Feature.STREAM,
        Feature.STREAM_QUERY,
        Feature.EVENT,
        Feature.EVENT_TIMING,
        Feature.ASYNC_COPY,
        Feature.GRAPH,
        Feature.PINNED_MEMORY,
        Feature.KV_POOL,
        Feature.KV_HOST_POOL,
        Feature.KV_PEER_COPY,
    }
    capability = backend.capability()
    assert capability.device_type == "simdev"
    assert [item.name for item in capability.devices] == [
        "simulated torch device 0",
        "simulated torch device 1",
    ]
    assert all(item.facts == {"level": "L1"} for item in capability.devices)
    assert capability.peer_access == {(0, 1), (1, 0)}
    assert capability.total_memory_bytes == MODULE.mem_get_info(0)[1]


@pytest.mark.parametrize("word", ["Stream", "Event", "stream"])
def test_a_module_without_streams_still_serves_pools_and_kernels(make, word):
    backend = make(module=changed_module(word, "current_stream"))
    assert Feature.STREAM not in backend._features()
    with pytest.raises(CapabilityError, match="stream"):
        backend.create_stream()
    with pytest.raises(CapabilityError, match="event"):
        backend.create_event()
    array = backend.from_numpy(np.array([[1.0, 2.0]], np.float32))
    assert backend.to_numpy(backend.get_kernel("silu_and_mul")(array)).shape == (1, 1)
    block, other = (backend.kv_block_alloc(16, DType.FP16) for _ in range(2))
    backend.kv_block_copy(block, other)


def test_a_module_with_one_device_has_no_peer_copies(make):
    backend = make(module=changed_module(device_count=lambda: 1))
    assert not backend.capability().has_kv_block_migrate
    block = backend.kv_block_alloc(16, DType.FP16)
    with pytest.raises(InvalidArgumentError, match="simdev:1"):
        backend.kv_block_migrate(block, "simdev:1")


def test_peer_access_is_what_the_module_says_and_copies_go_all_the_same(make):
    module = changed_module(can_device_access_peer=lambda one, other: one < other)
    capability = make(module=module).capability()
    assert capability.peer_access == {(0, 1)}
    assert capability.has_kv_block_migrate


def test_a_module_without_queries_and_timing_refuses_them(make):
    plain_stream = type("Stream", (), {"__new__": lambda cls, device: MODULE.Stream(device)})
    plain_event = type("Event", (), {"__new__": lambda cls: MODULE.Event()})
    backend = make(module=changed_module(Stream=plain_stream, Event=plain_event))
    assert not {Feature.STREAM_QUERY, Feature.EVENT_TIMING} & backend._features()
    stream, first, second = backend.create_stream(), backend.create_event(), backend.create_event()
    stream.record_event(first)
    stream.record_event(second)
    with pytest.raises(CapabilityError, match="stream_query"):
        stream.query()
    with pytest.raises(CapabilityError, match="event_timing"):
        second.elapsed_ms(first)


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, -1), (3, -3), (9, -5), (-4, 0)])
def test_priorities_are_turned_round_and_clamped(make, asked, given):
    seen = []

    class Stream(MODULE.Stream):
        def __new__(cls, device=None, priority=0):
            seen.append(priority)
            return super().__new__(cls, device)

        @staticmethod
        def priority_range():
            return 0, -5

    backend = make(module=changed_module(Stream=Stream))
    assert Feature.STREAM_PRIORITY in backend._features()
    assert backend.create_stream(asked).priority == asked
    assert seen == [given]


def test_dlpack_is_declared_where_torch_keeps_it(make, monkeypatch):
    array = make().from_numpy(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="Unknown device type"):
        torch.from_dlpack(array)
    monkeypatch.setattr(torch.Tensor, "__dlpack_device__", lambda self: (12, self.device.index))
    assert Feature.DLPACK in make()._features()


def test_hardware_claims_no_level(make):
    devices = make(simulated=False).capability().devices
    assert all("level" not in item.facts for item in devices)


def test_withheld_features_are_not_declared(make):
    backend = make(withheld=frozenset({Feature.EVENT_TIMING, Feature.PINNED_MEMORY}))
    assert not {Feature.EVENT_TIMING, Feature.PINNED_MEMORY} & backend._features()
    assert not backend.from_numpy(np.ones(4, np.float32), "host").is_pinned()


def test_fast_kernels_come_before_the_plain_ones(make):
    calls = []

    def fast(x):
        calls.append(tuple(x.shape))
        return torch.nn.functional.gelu(x)

    def gelu(x, approximate="none"):
        return fast(x)

    backend = make(fast_kernels={"gelu": gelu})
    backend.get_kernel("gelu")(backend.from_numpy(np.ones((2, 3), np.float32)))
    assert calls == [(2, 3)]


def test_arrays_are_charged_until_the_last_view_dies(backend):
    array = backend.from_numpy(np.arange(12, dtype=np.float32))
    view = array.reshape(3, 4)[1:]
    host = backend.empty((100,), DType.INT8, "host")
    assert backend.memory_stats()["other_bytes"] == 48
    assert backend.memory_stats("host")["other_bytes"] == 100
    del array, host
    gc.collect()
    assert backend.memory_stats()["other_bytes"] == 48
    assert backend.memory_stats("host")["other_bytes"] == 0
    assert backend.to_numpy(view).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    del view
    gc.collect()
    stats = backend.memory_stats()
    assert (stats["other_bytes"], stats["peak_allocated_bytes"]) == (0, 48)


def test_the_accounts_of_two_devices_are_apart(backend):
    array = backend.empty((10,), DType.FP32, "simdev:1")
    assert array.device == torch.device("simdev:1")
    assert backend.memory_stats()["other_bytes"] == 0
    assert backend.memory_stats("simdev:1")["other_bytes"] == 40


def test_a_device_that_is_full_says_so_with_numbers_and_works_on(make):
    backend, other = make(), make()
    free, total = MODULE.mem_get_info(0)
    held = other.empty((free - (1 << 20),), DType.INT8)
    with pytest.raises(OutOfMemoryError) as caught:
        backend.empty((2 << 20,), DType.INT8)
    assert caught.value.numbers["requested"] == 2 << 20
    assert caught.value.numbers["free"] <= 1 << 20
    assert caught.value.numbers["limit"] == total
    assert backend.memory_stats()["other_bytes"] == 0
    assert backend.empty((1000,), DType.INT8).shape == (1000,)
    del held


@pytest.mark.parametrize("location", ["device", "host"])
@pytest.mark.parametrize("alignment", [64, 1 << 12, 1 << 16, 1 << 21])
def test_pools_start_at_their_alignment(backend, layout, alignment, location):
    aligned = replace(layout, block_size=max(4, alignment // 32), alignment=alignment)
    pool = backend.kv_pool(aligned, 1, location)
    assert pool.key_cache(0).data_ptr() % alignment == 0


def test_host_arrays_can_be_read_and_are_foreign_to_kernels(backend):
    host = backend.from_numpy(np.ones((2, 4), np.float32), "host")
    assert host.device.type == "cpu"
    assert host.is_pinned()
    assert backend.to_numpy(host).tolist() == [[1] * 4] * 2
    with pytest.raises(InvalidArgumentError, match="x is no array of this backend"):
        backend.get_kernel("softmax")(host)
    array = backend.from_numpy(np.ones((2, 4), np.float32))
    with pytest.raises(InvalidArgumentError, match="weight is no array of this backend"):
        backend.get_kernel("linear")(array, host)


def test_to_numpy_waits_for_whichever_stream_makes_the_array(backend):
    cell = backend.from_numpy(np.zeros(3, np.float32))
    ones = backend.from_numpy(np.ones(3, np.float32))
    with backend.create_stream():
        MODULE.sleep(100)
        cell.copy_(ones)
    assert backend.to_numpy(cell).tolist() == [1, 1, 1]


@pytest.mark.parametrize("index", [0, 1])
def test_another_default_device_serves_streams_arrays_and_kernels(make, index):
    backend = make({"device": index})
    with backend.create_stream() as stream:
        assert MODULE.current_stream(index) == stream.native
        array = backend.from_numpy(np.ones((2, 4), np.float32))
        out = backend.get_kernel("softmax")(array)
    assert out.device == array.device == torch.device("simdev", index)
    assert backend.to_numpy(out).tolist() == [[0.25] * 4] * 2
    assert MODULE.current_device() == 0
    assert MODULE.current_stream(index) != stream.native


def test_a_stream_can_be_entered_twice_and_by_two_threads(backend):
    stream, seen = backend.create_stream(), []

    def enter():
        with stream, stream:
            seen.append(MODULE.current_stream(0) == stream.native)
        seen.append(MODULE.current_stream(0) == stream.native)

    with stream:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        seen.append(MODULE.current_stream(0) == stream.native)
    assert seen == [True, False, True]


def test_events_measure_what_lies_between(backend):
    stream, start, end = backend.create_stream(), backend.create_event(), backend.create_event()
    assert end.query()
    stream.record_event(start)
    with stream:
        MODULE.sleep(60)
    stream.record_event(end)
    assert not end.query()
    assert not stream.query()
    assert 60 <= end.elapsed_ms(start) < 2000
    assert end.query()
    with pytest.raises(InvalidArgumentError, match="after this one"):
        start.elapsed_ms(end)


@pytest.mark.parametrize("query", [[1, 1], [2, 1]], ids=["decode", "prefill"])
def test_metadata_is_made_without_waiting_for_the_device(backend, query):
    backend.synchronize()
    MODULE.sleep(1000)
    began = time.monotonic()
    metadata = backend.attention_metadata(query, [5, 3], [[0, 1], [2]], 4)
    assert time.monotonic() - began < 0.8
    assert not MODULE.current_stream(0).query()
    assert step.prepare(metadata, torch.device("simdev:0")).table.tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: device-side assert triggered", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("HIP error: unspecified launch failure", True),
        ("something else", False),
    ],
)
def test_a_device_that_is_lost_during_work_says_what_to_do(make, said, lost):
    def synchronize(device):
        raise RuntimeError(said)

    module = changed_module()
    backend = make(module=module)
    module.synchronize = synchronize
    with pytest.raises(UnavailableError) as caught:
        backend.synchronize()
    assert said in caught.value.message
    assert ("start another" in (caught.value.hint or "")) is lost
    module.synchronize = MODULE.synchronize
