"""Norms and rotary positions by compiled kernels: the same as plain torch, whatever the tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import norm, rope
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops.rope import rope_cache
from sagellm_backend.torch_support import kernels as plain

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TABLE = torch.from_numpy(rope_cache(128, 16))


@pytest.fixture(scope="module")
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def close(found, wanted):
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, wanted, rtol=4 * eps, atol=8 * eps)


def heads(tokens, *counts, dtype=torch.float32, size=24):
    """Views of one projection, as a fused q and k gives them."""
    torch.manual_seed(tokens)
    rows = torch.randn(tokens, sum(counts) * size).to(dtype)
    parts = rows.split([count * size for count in counts], dim=1)
    return [part.unflatten(1, (count, size)) for part, count in zip(parts, counts, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(0, 40),
    counts=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    style=st.sampled_from(["neox", "gptj"]),
    index=st.sampled_from([torch.int32, torch.int64]),
)
def test_rope_of_views_is_that_of_torch(dtype, tokens, counts, style, index):
    q, k = heads(tokens, *counts, dtype=dtype)
    positions = torch.randint(0, 128, (tokens,), dtype=index)
    before = q.clone()
    found = rope.rope(q, k, positions, TABLE, style=style)
    for result, wanted in zip(found, plain.rope(q, k, positions, TABLE, style=style), strict=True):
        close(result, wanted)
    assert torch.equal(q, before)


@pytest.mark.parametrize("position", [-1, 128, 1 << 40])
def test_a_position_outside_of_the_table_is_refused(backend, position):
    q, k = heads(3, 2, 1)
    kernel = backend.get_kernel("rope")
    with pytest.raises(InvalidArgumentError, match="positions"):
        kernel(q, k, torch.tensor([0, position, 5]), TABLE)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=2),
    width=st.integers(1, 200),
)
def test_norms_are_those_of_torch(dtype, shape, width):
    torch.manual_seed(width)
    x, residual = torch.randn(2, *shape, width).to(dtype)
    weight = torch.rand(width).to(dtype)
    y, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    wanted = torch.rms_norm(total.float(), (width,), weight.float(), 1e-5)
    close(y, wanted.to(dtype))
    assert torch.equal(norm.rms_norm(total, weight, 1e-5), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    threads = torch.get_num_threads()
    q, k = heads(900, 4, 2, dtype=dtype)
    positions = torch.arange(900) % 128
    x, weight = torch.randn(900, 300).to(dtype), torch.rand(300).to(dtype)
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            rotated = rope.rope(q, k, positions, TABLE)
            results.append((*rotated, norm.rms_norm(x, weight, 1e-6)))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_what_compiled_code_cannot_take_is_left_to_torch():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.rand(8)
    norm.rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None
    batched = torch.func.vmap(lambda row: norm.rms_norm(row, weight, 1e-6))(torch.randn(4, 8))
    assert batched.shape == (4, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_compiler_torch_computes(monkeypatch, dtype):
    q, k = heads(5, 2, 1, dtype=dtype)
    x, weight = torch.randn(5, 24).to(dtype), torch.rand(24).to(dtype)
    positions = torch.arange(5)
    compiled = (*rope.rope(q, k, positions, TABLE), norm.rms_norm(x, weight, 1e-6))
    for module in (rope, norm):
        for kernel in module._KERNELS.values():
            monkeypatch.setattr(kernel, "_function", None)
    without = (*rope.rope(q, k, positions, TABLE), norm.rms_norm(x, weight, 1e-6))
    for ours, theirs in zip(compiled, without, strict=True):
        close(ours, theirs)
