"""Graphs of one pool: its memory is counted once, their replays take turns, outputs are their own.

On the simulated device a replay overwrites everything that other graphs of its pool have made.
"""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import simdev
import torch

from sagellm_backend.torch_support import graph_pool
from sagellm_backend.torch_support.graph_pool import GraphPool

MODULE = simdev.module


@pytest.fixture
def x(backend):
    return backend.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))


def graph_bytes(backend):
    return backend.memory_stats()["graph_bytes"]


def test_outputs_outlast_the_replays_of_other_graphs(backend, x):
    def several(x):
        return {
            "sum": x + x,
            "pair": (x * 3, [x - 1]),
            "row": (x * 5)[1],
            "wide": x.sum().expand(4),
        }

    graphs = [backend.capture(several, {"x": x}) for _ in range(3)]
    pools = {tuple(graph._native.pool()) for graph in graphs}
    assert len(pools) == 1
    for graph in graphs:
        graph.replay()
    for graph in graphs:
        out = graph.outputs
        assert backend.to_numpy(out["sum"]).ravel().tolist() == [0, 2, 4, 6, 8, 10]
        assert backend.to_numpy(out["pair"][0]).ravel().tolist() == [0, 3, 6, 9, 12, 15]
        assert backend.to_numpy(out["pair"][1][0]).ravel().tolist() == [-1, 0, 1, 2, 3, 4]
        assert backend.to_numpy(out["row"]).tolist() == [15, 20, 25]
        assert backend.to_numpy(out["wide"]).tolist() == [15] * 4


def test_arrays_that_are_not_the_pool_s_are_returned_as_they_are(backend, x):
    cache = backend.from_numpy(np.zeros((4, 2, 3), np.float32))

    def step(x):
        cache[1] = x
        return x, cache[1], None, 7

    first, row, nothing, number = backend.capture(step, {"x": x}).outputs
    assert first.data_ptr() == x.data_ptr()
    assert row.data_ptr() == cache[1].data_ptr()
    assert (nothing, number) == (None, 7)


def test_the_pool_is_counted_until_its_last_graph_is_gone(backend, x):
    first = backend.capture(lambda x: x + x, {"x": x})
    one = graph_bytes(backend)
    assert one == first.nbytes > 0
    second = backend.capture(lambda x: x * 2, {"x": x})
    both = graph_bytes(backend)
    assert both == first.nbytes + second.nbytes
    first.close()
    outside = first._outside
    assert graph_bytes(backend) == both - outside  # torch holds the pool for the other graph
    del second
    gc.collect()
    assert graph_bytes(backend) == 0
    third = backend.capture(lambda x: x + x, {"x": x})
    assert graph_bytes(backend) == third.nbytes == one


def test_a_module_without_pools_has_one_for_each_graph(make):
    kept = {name: value for name, value in vars(MODULE).items() if name != "graph_pool_handle"}
    backend = make(module=type("Module", (), {k: staticmethod(v) for k, v in kept.items()}))
    x = backend.from_numpy(np.ones((2, 2), np.float32))
    graphs = [backend.capture(lambda x: x + x, {"x": x}) for _ in range(2)]
    assert len({tuple(graph._native.pool()) for graph in graphs}) == 2
    graphs[0].replay()
    graphs[1].replay()
    assert backend.to_numpy(graphs[0].outputs).tolist() == [[2, 2], [2, 2]]
    before = graph_bytes(backend)
    graphs[0].close()
    assert graph_bytes(backend) == before - graphs[0].nbytes == graphs[1].nbytes


def test_replays_of_two_streams_take_turns(backend, x):
    graphs = [backend.capture(lambda x: x + x, {"x": x}) for _ in range(2)]
    backend.synchronize()
    busy, other = backend.create_stream(), backend.create_stream()
    began = time.monotonic()
    with busy:
        graphs[0].replay()
        MODULE.sleep(300)
    with other:
        graphs[1].replay()  # kernels of this device wait for their stream
    assert time.monotonic() - began > 0.25
    assert backend.to_numpy(graphs[0].outputs).tolist()[1] == [6, 8, 10]


def test_replays_of_one_stream_make_no_events(backend, x, monkeypatch):
    graphs = [backend.capture(lambda x: x + x, {"x": x}) for _ in range(2)]
    made = []
    monkeypatch.setattr(graph_pool, "native_event", lambda *_, **__: made.append(1))
    for graph in graphs * 2:
        graph.replay()
    assert not made


class Ledger:
    """Stands still in the middle of a charge."""

    def __init__(self):
        self.held, self.waiting, self.go = 0, threading.Event(), threading.Event()

    def charge(self, nbytes, category):
        self.waiting.set()
        assert self.go.wait(10)
        self.held += nbytes

    def release(self, nbytes, category):
        self.held -= nbytes


class Native:
    def __init__(self, number):
        self.number = number

    def pool(self):
        return (0, self.number)


class Held:
    pass


def test_a_graph_that_dies_while_another_is_captured_waits_for_nobody():
    ledger = Ledger()
    module = type("Module", (), {"memory_snapshot": staticmethod(list)})
    pool = GraphPool(module, torch.device("cpu"), ledger)
    ledger.go.set()
    first = Held()
    with pool.held():
        _, leave = pool.join(first, Native(1), 100)
    assert ledger.held == 100
    ledger.go.clear()
    ledger.waiting.clear()
    second = Held()

    def capture():
        with pool.held():
            pool.join(second, Native(2), 10)

    thread = threading.Thread(target=capture)
    thread.start()
    assert ledger.waiting.wait(10)
    leave()  # returns, though the pool is held
    assert ledger.held == 100
    ledger.go.set()
    thread.join(10)
    assert ledger.held == 10
