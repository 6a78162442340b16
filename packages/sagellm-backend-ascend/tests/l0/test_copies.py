"""Copies between host and device: none that is called asynchronous goes through pageable memory.

torch_npu would issue such a copy and then wait for the stream, and nobody would know.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decode_step import Decode
from examination import CHIPS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sagellm_backend import DType, KVLayout
from sagellm_backend.kv.layout import ORDERS, PACKINGS

COPIES = {"copy_", "_to_copy", "_copy_from", "_foreach_copy_", "_copy_from_and_resize"}


class Watch(TorchDispatchMode):
    """Notes the copies between host and device that are made while it is on."""

    def __init__(self):
        super().__init__()
        self.asynchronous = self.pageable = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name.partition("::")[2] in COPIES:
            self._look(func, args, kwargs)
        return func(*args, **kwargs)

    def _look(self, func, args, kwargs):
        names = [item.name for item in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        arrays = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        target = given.get("device")
        kinds = {array.device.type for array in arrays} | ({target.type} if target else set())
        if len(kinds) < 2 or not given.get("non_blocking"):
            return
        self.asynchronous += 1
        hosts = [array for array in arrays if array.is_cpu]
        returned = target is not None and target.type == "cpu"
        self.pageable += returned or not all(array.is_pinned() for array in hosts)


def swap(backend):
    layout = KVLayout(2, 2, 128, 128, DType.FP16)
    for order in ORDERS:
        for packing in PACKINGS:
            made = KVLayout(**{**vars(layout), "order": order, "packing": packing})
            device, host = backend.kv_pool(made, 4), backend.kv_pool(made, 4, "host")
            ids, others = device.alloc(3), host.alloc(3)
            stream = backend.create_stream()
            for plan, first, second in (
                (backend.kv_copy_plan(device, host), ids, others),
                (backend.kv_copy_plan(host, device), others, ids),
            ):
                plan.copy(first, second, stream).wait(10)
                plan.copy(first, second).wait(10)


def step(backend):
    made = Decode(backend)
    made(**made.inputs((300, 5)))
    if backend.family.graphs:
        graph = backend.capture(made, made.inputs((384, 384)))
        graph.update(made.inputs((9, 10)))
        graph.replay()
    prompt = backend.attention_metadata([5, 3], [5, 3])
    k = backend.from_numpy(np.ones((8, 2, 128), np.float16))
    backend.get_kernel("attention", dtype="fp16")(k, k, k, prompt, scale=1.0)


def arrays(backend):
    host = backend.empty((4,), DType.FP32, "host")
    made = backend.from_numpy(np.ones(4, np.float32))
    made.copy_(host)
    backend.to_numpy(made)


@pytest.mark.parametrize(("work", "least"), [(swap, 8), (step, 2), (arrays, 0)])
@pytest.mark.parametrize("chip", ["A2", "310P"])
def test_no_asynchronous_copy_is_of_pageable_memory(make, chip, work, least):
    backend, watch = make(CHIPS[chip]), Watch()
    with watch:
        work(backend)
        backend.synchronize()
    assert watch.asynchronous >= least
    assert watch.pageable == 0


def test_pools_that_could_not_be_pinned_are_copied_without_the_claim(make, monkeypatch):
    monkeypatch.setattr("sagellm_backend.torch_support.memory.can_pin", lambda: False)
    backend, watch = make(), Watch()
    with watch:
        swap(backend)
    assert (watch.asynchronous, watch.pageable) == (0, 0)


def test_such_a_copy_is_seen(make):
    backend, watch = make(), Watch()
    device = backend.from_numpy(np.ones(4, np.float32))
    with watch:
        device.copy_(torch.ones(4), non_blocking=True)
        torch.ones(4).to(device.device, non_blocking=True)
        torch._foreach_copy_([device], [torch.ones(4)], non_blocking=True)
        device.copy_(torch.ones(4))
        device.copy_(torch.ones(4).pin_memory(), non_blocking=True)
    assert (watch.asynchronous, watch.pageable) == (4, 3)
