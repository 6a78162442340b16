"""KV copies of an accelerator: on the given stream, in its order, bit for bit."""

from __future__ import annotations

import gc
import itertools
import time

import numpy as np
import pytest
import simdev
import torch

from sagellm_backend import DType, KVLayout
from sagellm_backend.errors import DeadlineExceededError, InvalidArgumentError, KVTransferError
from sagellm_backend.torch_support.device_kv import _word

MODULE = simdev.module
BUSY_MS = 1000
PLACES = ("device", "host", "simdev:1")


def fill(backend, pool, seed):
    """Random bits in every block, by way of the pool's own caches."""
    rng = np.random.default_rng(seed)
    for layer, cache in itertools.product(range(2), (pool.key_cache, pool.value_cache)):
        view = cache(layer)
        bits = rng.integers(0, 1 << 14, tuple(view.shape), np.int16)
        view.copy_(torch.from_numpy(bits).view(torch.bfloat16))
    backend.synchronize()


def contents(backend, pool, ids):
    caches = [cache(layer) for layer in range(2) for cache in (pool.key_cache, pool.value_cache)]
    return [backend.to_numpy(cache).view(np.int16)[np.asarray(ids)] for cache in caches]


def same(ours, theirs):
    return all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("packing", ["separate", "packed"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("source", "target"), list(itertools.product(PLACES, PLACES)))
def test_every_direction_is_bit_exact_and_touches_nothing_else(
    backend, source, target, given, packing
):
    layout = KVLayout(
        num_layers=2, num_kv_heads=2, head_dim=8, block_size=4, dtype=DType.BF16, packing=packing
    )
    ours, theirs = (backend.kv_pool(layout, 12, place) for place in (source, target))
    fill(backend, ours, 1)
    fill(backend, theirs, 2)
    from_ids, to_ids = ours.alloc(12)[[1, 2, 3, 7, 5]], theirs.alloc(12)[[4, 5, 6, 0, 11]]
    kept = np.setdiff1d(np.arange(12), to_ids)
    before = contents(backend, theirs, kept)
    stream = backend.create_stream() if given else None
    transfer = backend.kv_copy_plan(ours, theirs).copy(from_ids, to_ids, stream)
    transfer.wait()
    assert transfer.done()
    assert transfer.nbytes == 5 * layout.page_bytes
    assert same(contents(backend, ours, from_ids), contents(backend, theirs, to_ids))
    assert same(contents(backend, theirs, kept), before)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("device", "host"),
        ("host", "device"),
        ("device", "device"),
        ("device", "simdev:1"),
        ("simdev:1", "host"),
    ],
)
def test_a_copy_on_a_busy_stream_returns_at_once_and_waits_its_turn(
    backend, layout, source, target
):
    ours, theirs = (backend.kv_pool(layout, 4, place) for place in (source, target))
    fill(backend, ours, 1)
    fill(backend, theirs, 2)
    ids, stream = np.arange(4), backend.create_stream()
    ours.alloc(4), theirs.alloc(4)
    plan = backend.kv_copy_plan(ours, theirs)
    wanted = contents(backend, ours, ids)
    with stream:
        MODULE.sleep(BUSY_MS)
    began = time.monotonic()
    transfer = plan.copy(ids, ids, stream)
    assert time.monotonic() - began < BUSY_MS / 2e3
    assert not transfer.done()
    with pytest.raises(DeadlineExceededError, match="still under way"):
        transfer.wait(0.01)
    transfer.wait()
    assert transfer.done()
    assert same(contents(backend, theirs, ids), wanted)


@pytest.fixture
def far(backend, layout):
    """Copies four blocks on device 1, on a stream of device 0."""
    ours, theirs = (backend.kv_pool(layout, 4, "simdev:1") for _ in range(2))
    fill(backend, ours, 1)
    ids, stream = np.arange(4), backend.create_stream()
    ours.alloc(4), theirs.alloc(4)
    plan = backend.kv_copy_plan(ours, theirs)
    return stream, lambda: plan.copy(ids, ids, stream)


def test_a_copy_on_another_device_comes_after_earlier_work_of_the_stream(far):
    stream, copy = far
    with stream:
        MODULE.sleep(BUSY_MS)
    copy()
    time.sleep(0.05)
    assert not MODULE.current_stream(1).query()


def test_later_work_of_the_stream_comes_after_a_copy_on_another_device(backend, far):
    stream, copy = far
    event = backend.create_event()
    with MODULE.stream(MODULE.current_stream(1)):
        MODULE.sleep(BUSY_MS)
    copy()
    stream.record_event(event)
    time.sleep(0.05)
    assert not event.query()
    event.synchronize()


def test_host_to_host_comes_after_what_the_stream_brings(backend, layout):
    device, first, second = (
        backend.kv_pool(layout, 2, place) for place in ("device", "host", "host")
    )
    fill(backend, device, 1)
    ids, stream = np.arange(2), backend.create_stream()
    for pool in (device, first, second):
        pool.alloc(2)
    with stream:
        MODULE.sleep(50)
    backend.kv_copy_plan(device, first).copy(ids, ids, stream)
    backend.kv_copy_plan(first, second).copy(ids, ids, stream).wait()
    assert same(contents(backend, device, ids), contents(backend, second, ids))


def test_without_a_stream_the_entered_one_is_followed_and_waited_for(backend, layout):
    device, host = (backend.kv_pool(layout, 2, place) for place in ("device", "host"))
    fill(backend, device, 1)
    ids = np.arange(2)
    device.alloc(2), host.alloc(2)
    with backend.create_stream() as stream:
        MODULE.sleep(50)
        transfer = backend.kv_copy_plan(device, host).copy(ids, ids)
        assert stream.query()
    assert transfer.done()
    assert same(contents(backend, device, ids), contents(backend, host, ids))


def test_closing_a_pool_does_not_pull_it_from_under_a_copy(backend, layout):
    device, host = (backend.kv_pool(layout, 8, place) for place in ("device", "host"))
    fill(backend, device, 1)
    ids, stream = np.arange(8), backend.create_stream()
    device.alloc(8), host.alloc(8)
    wanted = contents(backend, device, ids)
    with stream:
        MODULE.sleep(BUSY_MS)
    transfer = backend.kv_copy_plan(device, host).copy(ids, ids, stream)
    address = device.key_cache(0).data_ptr()
    device.close()
    del device
    gc.collect()
    again = backend.kv_pool(layout, 8)
    assert again.key_cache(0).data_ptr() == address
    fill(backend, again, 2)
    transfer.wait()
    assert same(contents(backend, host, ids), wanted)


def test_a_failing_device_is_a_transfer_error(make, layout):
    class Broken(torch.Event):
        def query(self):
            raise RuntimeError("device lost")

    backend = make()
    device, host = (backend.kv_pool(layout, 2, place) for place in ("device", "host"))
    device.alloc(2), host.alloc(2)
    transfer = backend.kv_copy_plan(device, host).copy([0, 1], [0, 1], backend.create_stream())
    transfer._event = Broken("simdev")
    assert transfer.done()
    with pytest.raises(KVTransferError, match="device lost"):
        transfer.wait()


def test_a_stream_of_another_provider_is_refused(make, layout):
    backend, other = make(), make()
    pool = backend.kv_pool(layout, 4)
    ids = pool.alloc(4)
    with pytest.raises(InvalidArgumentError, match="another provider"):
        backend.kv_copy_plan(pool, pool).copy(ids[:1], ids[1:2], other.create_stream())


def test_a_fresh_pool_is_done_with_what_its_memory_was_before(backend, layout):
    ones = torch.ones(8, 4, 2, 8, dtype=torch.bfloat16).pin_memory()
    MODULE.sleep(100)
    pool = backend.kv_pool(layout, 8)
    with backend.create_stream() as stream:
        pool.key_cache(0).copy_(ones, non_blocking=True)
    stream.synchronize()
    backend.synchronize()
    assert pool.key_cache(0).eq(1).all().item()


@pytest.mark.parametrize(
    ("dtype", "dim", "word"),
    [
        (DType.BF16, 8, torch.int64),
        (DType.FP8, 8, torch.int64),
        (DType.FP8, 4, torch.int32),
        (DType.INT8, 6, torch.int16),
        (DType.INT8, 3, torch.uint8),
        (DType.FP16, 3, torch.int16),
    ],
)
def test_copies_move_the_widest_words_that_pages_divide_into(backend, dtype, dim, word):
    layout = KVLayout(2, 1, dim, block_size=1, dtype=dtype, alignment=1)
    source, target = backend.kv_pool(layout, 3), backend.kv_pool(layout, 3)
    for pool in (source, target):
        pool.alloc(3)
    assert _word(source.pages, target.pages) is word
    bits = np.arange(source.pages.numel()).astype(dtype.numpy)
    source.pages.copy_(backend.from_numpy(bits).view(source.pages.shape))
    backend.kv_copy_plan(source, target).copy([0, 2], [1, 0]).wait()
    wanted = bits.reshape(source.pages.shape)
    copied = backend.to_numpy(target.pages)
    assert copied[:, 1].tobytes() == wanted[:, 0].tobytes()
    assert copied[:, 0].tobytes() == wanted[:, 2].tobytes()
