"""Graphs over a device module, on a device whose graphs record calls."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
import simdev
import torch

from sagellm_backend import DType
from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import all_cases
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.errors import (
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.torch_support import device_kernels

MODULE = simdev.module


@pytest.fixture
def x(backend):
    return backend.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))


def double(x):
    return x + x


def test_the_graph_cases_of_the_suite_pass(make):
    capability = make().capability()
    cases = [case for case in all_cases(capability)[0] if case.profile == "graph"]
    assert len({case.id.partition("[")[0] for case in cases}) == 8
    for case in cases:
        exam = Exam(case, capability, make)
        try:
            case.function(exam)
        finally:
            exam.close()


def test_a_module_without_graphs_has_none(make):
    kept = {name: value for name, value in vars(MODULE).items() if name != "graph"}
    backend = make(module=type("Module", (), {k: staticmethod(v) for k, v in kept.items()}))
    assert Feature.GRAPH not in backend._features()
    with pytest.raises(CapabilityError, match="graph"):
        backend.capture(double, {})


def test_nothing_is_computed_by_the_capture_itself(backend, x):
    calls = []

    def step(x):
        calls.append(1)
        x.mul_(2)
        return x + 1

    graph = backend.capture(step, {"x": x})
    assert len(calls) == 2
    assert backend.to_numpy(x).ravel().tolist() == [0, 2, 4, 6, 8, 10]  # by the warm-up
    left = backend.to_numpy(graph.outputs).ravel().tolist()
    assert left == [1, 3, 5, 7, 9, 11]  # by the warm-up too
    graph.replay()
    assert backend.to_numpy(graph.outputs).ravel().tolist() == [1, 5, 9, 13, 17, 21]
    assert len(calls) == 2


def test_replays_and_updates_follow_the_stream_they_are_called_in(backend, x):
    graph = backend.capture(double, {"x": x})
    new = backend.from_numpy(np.full((2, 3), 7, np.float32))
    backend.synchronize()
    began = time.monotonic()
    with backend.create_stream():
        MODULE.sleep(200)
        graph.update({"x": new})
        graph.replay()
    assert time.monotonic() - began >= 0.2  # kernels of this device wait for their stream
    assert backend.to_numpy(graph.outputs).ravel().tolist() == [14] * 6


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 1],
        lambda x: x.cpu(),
        lambda x: torch.empty_like(x).copy_(torch.ones(2, 3)),
    ],
    ids=["item", "mask", "cpu", "pageable"],
)
def test_what_waits_for_the_device_cannot_be_captured(backend, x, wait):
    before = backend.memory_stats()["graph_bytes"]
    with pytest.raises(UnavailableError, match="could not be captured") as caught:
        backend.capture(wait, {"x": x})
    assert ".item()" in caught.value.hint
    assert backend.memory_stats()["graph_bytes"] == before
    assert backend.to_numpy(backend.capture(double, {"x": x}).replay()).tolist()[0] == [0, 2, 4]


def test_a_graph_that_does_not_fit_is_out_of_memory_and_leaves_nothing(make):
    backend = make({"memory_limit": 12288})
    x = backend.from_numpy(np.ones((32, 32), np.float32))
    with pytest.raises(OutOfMemoryError):
        backend.capture(lambda x: double(double(x)), {"x": x})
    assert backend.memory_stats()["graph_bytes"] == 0
    # One result in the pool, and its copy.
    assert backend.capture(double, {"x": x}).nbytes == 2 * 4096


def test_a_graph_that_is_dropped_gives_its_charge_back(backend, x):
    graph = backend.capture(double, {"x": x})
    assert backend.memory_stats()["graph_bytes"] == graph.nbytes > 0
    del graph
    gc.collect()
    assert backend.memory_stats()["graph_bytes"] == 0


def test_a_closed_graph_waits_for_its_replays_and_refuses_more(backend, x):
    graph = backend.capture(double, {"x": x})
    out = graph.replay()
    graph.close()
    assert backend.to_numpy(out).tolist()[1] == [6, 8, 10]
    for call in (graph.replay, lambda: graph.update({}), lambda: graph.outputs):
        with pytest.raises(UnavailableError, match="closed"):
            call()


@pytest.mark.parametrize("index", [0, 1])
def test_graphs_of_another_default_device(make, index):
    backend = make({"device": index})
    x = backend.from_numpy(np.ones((2, 2), np.float32))
    graph = backend.capture(double, {"x": x})
    assert backend.to_numpy(graph.replay()).tolist() == [[2, 2], [2, 2]]
    assert MODULE.current_device() == 0


def test_inputs_of_elsewhere_are_refused(backend):
    host = backend.from_numpy(np.ones((2, 2), np.float32), "host")
    with pytest.raises(InvalidArgumentError, match="static inputs lie on simdev:0"):
        backend.capture(double, {"x": host})


def test_host_values_are_part_of_the_graph(backend, x):
    graph = backend.capture(lambda x, factor: x * factor, {"x": x, "factor": 3})
    graph.update({"factor": 3})
    with pytest.raises(InvalidArgumentError, match="factor is 3 in this graph"):
        graph.update({"factor": 4})
    assert backend.to_numpy(graph.replay()).tolist()[1] == [9, 12, 15]


class TestDecode:
    """A decode step with its metadata: lengths, blocks and slots of the day."""

    SIZE = 4

    @pytest.fixture
    def step(self, backend, layout):
        pool = backend.kv_pool(layout, 8)
        pool.alloc(8)
        write = backend.get_kernel("kv_write", dtype="bf16")
        attend = backend.get_kernel("attention", dtype="bf16")
        keys, values = pool.key_cache(0), pool.value_cache(0)
        rng = np.random.default_rng(3)
        filled = rng.standard_normal((2, *keys.shape)).astype(DType.BF16.numpy)
        keys.copy_(backend.from_numpy(filled[0]))
        values.copy_(backend.from_numpy(filled[1]))

        def step(q, k, v, slots, metadata):
            write(k, v, keys, values, slots)
            return attend(q, keys, values, metadata, scale=0.3)

        return step

    def inputs(self, backend, lengths, table, seed=0):
        rng = np.random.default_rng(seed)

        def drawn(*shape):
            return backend.from_numpy(rng.standard_normal(shape).astype(DType.BF16.numpy))

        metadata = backend.attention_metadata([1] * len(lengths), lengths, table, self.SIZE)
        return {
            "q": drawn(len(lengths), 4, 8),
            "k": drawn(len(lengths), 2, 8),
            "v": drawn(len(lengths), 2, 8),
            "slots": backend.from_numpy(metadata.slots()),
            "metadata": metadata,
        }

    def test_it_follows_lengths_blocks_and_slots(self, backend, step):
        graph = backend.capture(step, self.inputs(backend, [8, 8], [[0, 1], [2, 3]]))
        for seed, (lengths, table) in enumerate(
            [([1, 7], [[4, -1], [5, 6]]), ([5, 5], [[7, 2], [0, 1]]), ([3, 2], [[6], [1]])]
        ):
            given = self.inputs(backend, lengths, table, seed)
            wanted = backend.to_numpy(step(**given))
            graph.update(given)
            assert (
                backend.to_numpy(graph.replay()).tobytes() == wanted.tobytes() or len(table[0]) == 1
            )
            np.testing.assert_allclose(
                backend.to_numpy(graph.outputs).astype(np.float32),
                wanted.astype(np.float32),
                rtol=2**-8,
                atol=2**-8,
            )

    @pytest.mark.parametrize(
        ("query", "lengths", "table", "size", "said"),
        [
            ([1], [8], [[0, 1]], 4, "1 sequences, not 2"),
            ([1, 1], [8, 9], [[0, 1, 2], [3, 4, 5]], 4, "3 blocks per sequence"),
            ([1, 1], [8, 8], [[0], [1]], 8, "blocks have 8 tokens"),
            ([2, 1], [8, 8], [[0, 1], [2, 3]], 4, "mode is paged_prefill"),
            ([1, 1], None, None, None, "mode is ragged_prefill"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_changes_nothing(
        self, backend, step, query, lengths, table, size, said
    ):
        given = self.inputs(backend, [8, 6], [[0, 1], [2, 3]])
        graph = backend.capture(step, given)
        before = backend.to_numpy(graph.replay())
        other = backend.attention_metadata(query, lengths, table, size)
        with pytest.raises(InvalidArgumentError, match=said):
            graph.update({**self.inputs(backend, [8, 6], [[0, 1], [2, 3]], 9), "metadata": other})
        assert backend.to_numpy(graph.replay()).tobytes() == before.tobytes()

    def test_a_prefill_has_its_lengths_for_good(self, backend, layout):
        attend = backend.get_kernel("attention", dtype="fp32")
        qkv = [backend.from_numpy(np.ones((5, 2, 8), np.float32)) for _ in range(3)]
        graph = backend.capture(
            lambda metadata: attend(*qkv, metadata, scale=1.0),
            {"metadata": backend.attention_metadata([2, 3])},
        )
        graph.update({"metadata": backend.attention_metadata([2, 3])})
        with pytest.raises(InvalidArgumentError, match="lengths differ"):
            graph.update({"metadata": backend.attention_metadata([3, 2])})


@pytest.mark.parametrize("slots", [[-1, -1, -1], [-1, 0, -1], [5, -1, 0], [2, 7, 1], []])
def test_kv_write_skips_without_a_look_at_the_slots(backend, slots):
    rng = np.random.default_rng(1)
    key = backend.from_numpy(rng.standard_normal((len(slots), 2, 4)).astype(np.float32))
    cache = rng.standard_normal((2, 4, 2, 4)).astype(np.float32)
    caches = [backend.from_numpy(cache) for _ in range(2)]
    backend.get_kernel("kv_write")(key, key, *caches, backend.from_numpy(np.array(slots, np.int64)))
    for slot, row in zip(slots, backend.to_numpy(key), strict=True):
        if slot >= 0:
            cache[slot // 4, slot % 4] = row
    for written in caches:
        assert backend.to_numpy(written).tobytes() == cache.tobytes()


@pytest.mark.parametrize("moved", range(5))
def test_kv_write_refuses_arrays_of_two_devices_and_writes_nothing(backend, moved):
    shapes = [(2, 2, 4), (2, 2, 4), (2, 4, 2, 4), (2, 4, 2, 4)]
    arrays = [np.full(shape, number, np.float32) for number, shape in enumerate(shapes)]
    arrays.append(np.array([0, 5], np.int64))
    given = [
        backend.from_numpy(array, "simdev:1" if number == moved else "device")
        for number, array in enumerate(arrays)
    ]
    with pytest.raises(InvalidArgumentError, match="simdev:1"):
        backend.get_kernel("kv_write")(*given)
    for array, kept in zip(arrays, given, strict=True):
        assert backend.to_numpy(kept).tobytes() == array.tobytes()


@pytest.mark.parametrize("room", [1, 300, 1 << 28])
def test_decode_gathers_no_more_than_it_has_room_for(backend, monkeypatch, room):
    rng = np.random.default_rng(5)
    query, cache = rng.standard_normal((5, 4, 8)), rng.standard_normal((2, 6, 4, 2, 8))
    q, k, v = (backend.from_numpy(one.astype(np.float32)) for one in (query, *cache))
    table = [[0, 1], [2, -1], [3, 4], [5, -1], [1, 0]]
    metadata = backend.attention_metadata([1] * 5, [8, 3, 5, 4, 7], table, 4)
    kernel = backend.get_kernel("attention")
    wanted = backend.to_numpy(kernel(q, k, v, metadata, scale=0.4))
    taken, select = [], torch.Tensor.index_select
    monkeypatch.setattr(
        torch.Tensor,
        "index_select",
        lambda one, dim, index: taken.append(index.numel()) or select(one, dim, index),
    )
    monkeypatch.setattr(device_kernels, "GATHERED", room)
    got = backend.to_numpy(kernel(q, k, v, metadata, scale=0.4))
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
    assert max(taken) * k[0].numel() * 4 <= max(room, 2 * k[0].numel() * 4)
