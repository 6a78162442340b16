"""The alternatives of the benchmark compute what the operations beside them compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sagellm_backend import get_provider
from sagellm_backend.bench.memcpy import BlockMemcpy
from sagellm_backend.ops.rope import rope_cache
from sagellm_backend.torch_support import bench

GENERATOR = np.random.default_rng(5)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def provider():
    with get_provider("cpu") as made:
        yield made


def normal(provider, *shape):
    return provider.from_numpy(GENERATOR.standard_normal(shape, np.float32))


@pytest.mark.parametrize(("query", "kv_heads"), [(1, 2), (1, 4), (7, 2)])
def test_gather_and_sdpa(provider, query, kv_heads):
    batch, context, block = 3, 37, 16
    table = GENERATOR.permutation(batch * 3).reshape(batch, 3).astype(np.int32)
    q = normal(provider, batch * query, 4, 8)
    k, v = (normal(provider, batch * 3, block, kv_heads, 8) for _ in range(2))
    metadata = provider.attention_metadata([query] * batch, [context] * batch, table, block)
    ours = provider.get_kernel("attention", dtype="fp32")(q, k, v, metadata, scale=0.3)
    found = bench.gather_sdpa(q, k, v, metadata, 0.3)()
    torch.testing.assert_close(found.transpose(1, 2).reshape(ours.shape), ours, **CLOSE)


def test_the_operations_between_the_products(provider):
    x, y, weight = normal(provider, 5, 16), normal(provider, 5, 16), normal(provider, 16)
    calls = {
        "rms_norm": (x, weight, 1e-5),
        "silu_and_mul": (x,),
        "rope": (
            normal(provider, 5, 4, 8),
            normal(provider, 5, 2, 8),
            provider.from_numpy(np.arange(5)),
            provider.from_numpy(rope_cache(5, 8).astype(np.float32)),
        ),
    }
    for name, args in calls.items():
        ours = provider.get_kernel(name, dtype="fp32")(*args)
        torch.testing.assert_close(getattr(bench, name)(*args)(), ours, **CLOSE)
    ours, _ = provider.get_kernel("add_rms_norm", dtype="fp32")(x, y, weight, 1e-5)
    torch.testing.assert_close(bench.add_rms_norm(x, y, weight, 1e-5)(), ours, **CLOSE)


def test_the_write_into_the_cache(provider):
    new = [normal(provider, 3, 2, 8) for _ in range(2)]
    slots = provider.from_numpy(np.array([9, 0, 4]))
    ours = [provider.from_numpy(np.zeros((3, 4, 2, 8), np.float32)) for _ in range(2)]
    theirs = [cache.clone() for cache in ours]
    provider.get_kernel("kv_write", dtype="fp32")(*new, *ours, slots)
    bench.kv_write(*new, *theirs, slots)()
    for found, wanted in zip(theirs, ours, strict=True):
        assert torch.equal(found, wanted)
        assert wanted.any()


def test_products_take_their_weights_in_turns(provider):
    x, weights = normal(provider, 2, 8), [normal(provider, 4, 8) for _ in range(2)]
    call = bench.linear(x, weights)
    for weight in (*weights, weights[0]):
        torch.testing.assert_close(call(), x @ weight.T)


@pytest.mark.parametrize("name", ["bare_matmul", "bare_linear"])
def test_the_calls_inside(provider, name):
    a, b = normal(provider, 4, 4), normal(provider, 4, 4)
    ours = provider.get_kernel(name.removeprefix("bare_"), dtype="fp32")(a, b)
    torch.testing.assert_close(getattr(bench, name)(a, b)(), ours)


def test_memcpy_of_blocks():
    source = GENERATOR.integers(0, 256, (8, 64), np.uint8)
    target = np.zeros_like(source)
    BlockMemcpy()(target, source, np.array([1, 5, 0]), np.array([7, 2, 3]))
    wanted = np.zeros_like(source)
    wanted[[1, 5, 0]] = source[[7, 2, 3]]
    assert np.array_equal(target, wanted)
