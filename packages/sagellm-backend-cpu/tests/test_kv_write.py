"""Writes into a paged cache by a compiled kernel: the same bits as plain torch, or nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import kv_write
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.torch_support import kernels as plain

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def caches(dtype, blocks, size, heads, dim, order):
    """A key cache and a value cache, in one of the physical orders."""
    shape = (2, blocks, size, heads, dim) if order == "NHD" else (2, blocks, heads, size, dim)
    both = torch.randn(shape).to(dtype)
    return both.unbind() if order == "NHD" else both.transpose(2, 3).unbind()


def tokens_of(dtype, count, heads, dim):
    """Keys and values as views of one projection."""
    rows = torch.randn(count, 3 * heads * dim).to(dtype)
    _, key, value = rows.view(count, 3, heads, dim).unbind(1)
    return key, value


@settings(max_examples=80, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    order=st.sampled_from(["NHD", "HND"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 17), st.integers(1, 3), st.integers(1, 70)),
    index=st.sampled_from([torch.int32, torch.int64]),
    data=st.data(),
)
def test_the_caches_have_the_bits_that_torch_writes(dtype, order, sizes, index, data):
    blocks, size, heads, dim = sizes
    count = data.draw(st.integers(0, blocks * size))
    torch.manual_seed(count)
    ours = [cache.clone() for cache in caches(dtype, *sizes, order)]
    theirs = [cache.clone() for cache in ours]
    key, value = tokens_of(dtype, count, heads, dim)
    slots = torch.randperm(blocks * size)[:count].to(index)
    slots[torch.rand(count) < 0.2] = -1
    kv_write.kv_write(key, value, *ours, slots)
    plain.kv_write(key, value, *theirs, slots)
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.stride() == wanted.stride()
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("wrong", [-2, 8 * 16, 1 << 40])
@pytest.mark.parametrize("count", [1, 100])
def test_a_wrong_slot_is_refused_and_nothing_is_written(wrong, count):
    both = [cache.clone() for cache in caches(torch.float32, 8, 16, 2, 64, "NHD")]
    before = [cache.clone() for cache in both]
    key, value = tokens_of(torch.float32, count, 2, 64)
    slots = torch.randperm(8 * 16)[:count]
    slots[-1] = wrong
    with CPUBackendProvider() as backend, pytest.raises(InvalidArgumentError, match="slots"):
        backend.get_kernel("kv_write")(key, value, *both, slots)
    assert all(map(torch.equal, both, before))


def test_nan_keeps_its_bits():
    bits = torch.tensor([0x7FC1, 0x7F81, 0xFFFF - 0x10000, 0x0001], dtype=torch.int16)
    key = bits.view(torch.bfloat16).view(1, 1, 4)
    both = caches(torch.bfloat16, 1, 2, 1, 4, "NHD")
    kv_write.kv_write(key, key, *both, torch.tensor([1]))
    for cache in both:
        assert torch.equal(cache[0, 1, 0].view(torch.int16), bits)


def test_without_a_compiler_torch_writes(monkeypatch):
    monkeypatch.setattr(kv_write._KERNEL, "_tried", True)
    monkeypatch.setattr(kv_write._KERNEL, "_function", None)
    both = [cache.clone() for cache in caches(torch.float16, 2, 4, 1, 8, "HND")]
    key, value = tokens_of(torch.float16, 3, 1, 8)
    kv_write.kv_write(key, value, *both, torch.tensor([7, -1, 0]))
    assert torch.equal(both[0][1, 3], key[0])
    assert torch.equal(both[1][0, 0], value[2])
