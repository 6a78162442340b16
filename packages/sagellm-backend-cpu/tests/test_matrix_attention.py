"""Attention by the matrix unit: the numbers of plain torch, where it is used and where it leaves off."""

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import attention, matrices
from sagellm_backend.torch_support import attention as plain

pytestmark = pytest.mark.skipif(
    not matrices.available(matrices.BF16), reason="this processor has no matrix unit for bf16"
)


@pytest.fixture(scope="module")
def backend():
    with CPUBackendProvider() as provider:
        yield provider


class Case:
    """Two sequences of bf16, and how to attend over them."""

    def __init__(self, backend, context, *, heads=8, kv=4, dim=64, block=16, queries=1, **options):
        each, batch = -(-context // block), 2
        generator = torch.Generator().manual_seed(context)
        shape = (batch * each, block, kv, dim)
        self.k, self.v = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
        self.q = torch.randn(batch * queries, heads, dim, generator=generator).bfloat16()
        table = np.random.default_rng(0).permutation(batch * each).reshape(batch, each)
        self.table, self.block = table.astype(np.int32), block
        self.lengths = [queries] * batch, [context, context - context // 3]
        self.backend, self.options = backend, {"scale": dim**-0.5, **options}

    def metadata(self):
        return self.backend.attention_metadata(*self.lengths, self.table, self.block)

    def ours(self):
        return attention.attention(self.q, self.k, self.v, self.metadata(), **self.options)

    def expected(self):
        wide = (tensor.float() for tensor in (self.q, self.k, self.v))
        return plain.attention(*wide, self.metadata(), **self.options)

    def check(self):
        expected = self.expected()
        error = (self.ours().float() - expected).abs()
        assert (error <= expected.abs() / 200 + 2e-3).all(), error.max()


@pytest.mark.parametrize("context", [16, 63, 64, 65, 128, 200, 513, 1300])
@pytest.mark.parametrize(("heads", "kv"), [(8, 4), (4, 4), (3, 1), (10, 2), (16, 1)])
def test_lengths_and_rows_of_every_kind(backend, context, heads, kv):
    Case(backend, context, heads=heads, kv=kv).check()


@pytest.mark.parametrize("dim", [32, 96, 128, 256])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_widths_and_blocks(backend, dim, block):
    Case(backend, 333, dim=dim, block=block).check()


@pytest.mark.parametrize(
    "options", [{"window": 70}, {"window": 64}, {"softcap": 3.0}, {"causal": False}, {}], ids=str
)
@pytest.mark.parametrize("queries", [1, 5, 20])
def test_what_is_hidden(backend, options, queries):
    Case(backend, 300, queries=queries, **options).check()


def test_sinks(backend):
    Case(backend, 300, sinks=torch.linspace(-2, 6, 8)).check()


def test_heads_in_several_groups(backend):
    case = Case(backend, 600, heads=40, kv=40, dim=64)  # a token's keys fill more than a page
    case.check()


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (2, 0, 1, 3)])
def test_caches_that_lie_in_another_order(backend, order):
    case = Case(backend, 300)
    back = np.argsort(order).tolist()
    case.k, case.v = (cache.permute(order).contiguous().permute(back) for cache in (case.k, case.v))
    assert not case.k.is_contiguous()
    case.check()


@pytest.mark.parametrize("options", [{"block": 8}, {"dim": 48}])
def test_shapes_that_are_left_to_vectors(backend, options):
    case = Case(backend, 300, **options)
    assert not attention._by_matrix(torch.bfloat16, case.block, case.q.shape[2])
    case.check()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (8, 4), (12, 4), (16, 4), (40, 4)])
def test_what_is_no_number_stays_in_its_column(backend, value, heads, kv):
    case = Case(backend, 200, heads=heads, kv=kv)
    first = int(case.table[0, 2])
    case.v[first, 3, 1, 5] = value
    y, expected = case.ours().float(), case.expected()
    finite = torch.isfinite(expected)
    assert (~finite).sum() == heads // kv
    assert torch.equal(torch.isfinite(y), finite)
    assert ((y - expected)[finite].abs() <= expected[finite].abs() / 200 + 2e-3).all()


def test_the_bits_do_not_depend_on_the_number_of_threads(backend):
    case, before, found = Case(backend, 1500), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(case.ours())
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_without_leave_to_use_the_unit(backend, monkeypatch):
    monkeypatch.setattr(attention.matrices, "available", lambda needed: False)
    Case(backend, 300, queries=3).check()
