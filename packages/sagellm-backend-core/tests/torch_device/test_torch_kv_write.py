"""kv_write of devices with streams: into every layout, in few launches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sagellm_backend import DType, KVLayout
from sagellm_backend.torch_support import device_kernels

ORDERS = [("NHD", "separate"), ("NHD", "packed"), ("HND", "separate"), ("HND", "packed")]


class Launches(TorchDispatchMode):
    """Counts the operators that are no views: each is at least one launch on a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def pool_of(backend, order, packing, size=4):
    layout = KVLayout(2, 2, 8, block_size=size, dtype=DType.FP32, order=order, packing=packing)
    pool = backend.kv_pool(layout, 5)
    for layer in range(2):
        for cache in (pool.key_cache(layer), pool.value_cache(layer)):
            numbers = np.arange(cache.numel(), dtype=np.float32).reshape(cache.shape)
            cache.copy_(torch.from_numpy(numbers) + 1000 * layer)
    return pool


@pytest.mark.parametrize(("order", "packing"), ORDERS)
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("slots", [[-1, -1], [-1, 0, -1], [4, -1, 0], [2, 3, 1], [-1, 4], [0]])
def test_only_the_named_slots_change(backend, order, packing, index, size, slots):
    pool = pool_of(backend, order, packing, size)
    caches = [pool.key_cache(1), pool.value_cache(1)]
    others = [backend.to_numpy(pool.key_cache(0)), backend.to_numpy(pool.value_cache(0))]
    wanted = [backend.to_numpy(cache) for cache in caches]
    rows = np.random.default_rng(0).standard_normal((2, len(slots), 2, 8)).astype(np.float32)
    key, value = (backend.from_numpy(row) for row in rows)
    given = backend.from_numpy(np.array(slots, index))
    backend.get_kernel("kv_write")(key, value, *caches, given)
    for token, slot in enumerate(slots):
        if slot >= 0:
            wanted[0][slot // size, slot % size] = rows[0, token]
            wanted[1][slot // size, slot % size] = rows[1, token]
    assert [backend.to_numpy(cache).tobytes() for cache in caches] == [
        cache.tobytes() for cache in wanted
    ]
    assert backend.to_numpy(pool.key_cache(0)).tobytes() == others[0].tobytes()
    assert backend.to_numpy(pool.value_cache(0)).tobytes() == others[1].tobytes()


@pytest.mark.parametrize(("order", "packing"), ORDERS)
@pytest.mark.parametrize(("index", "more"), [(np.int64, 0), (np.int32, 1)])
def test_a_write_is_few_launches(backend, order, packing, index, more):
    pool = pool_of(backend, order, packing)
    key = backend.from_numpy(np.ones((3, 2, 8), np.float32))
    slots = backend.from_numpy(np.array([1, -1, 3], index))
    with Launches() as seen:
        device_kernels.kv_write(key, key, pool.key_cache(0), pool.value_cache(0), slots)
    flat = (order, packing) == ("NHD", "separate")
    assert len(seen.names) == (13 if flat else 15) + more, seen.names
    assert sum("index_put" in name for name in seen.names) == 2
