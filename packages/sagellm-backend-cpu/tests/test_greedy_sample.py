"""The highest logit by the compiled kernel: the same ids as torch's."""

import pytest
import torch

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import sampling
from sagellm_backend.errors import InvalidArgumentError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def kernel():
    with CPUBackendProvider() as provider:
        yield provider.get_kernel("greedy_sample")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 256), (5, 257), (7, 49152)])
def test_ids_are_those_of_torch(kernel, dtype, shape):
    logits = torch.randn(shape).to(dtype)
    ids = kernel(logits)
    assert ids.dtype is torch.int64
    assert torch.equal(ids, logits.argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_place_of_a_row(kernel, dtype):
    logits = torch.full((600, 600), -1.0, dtype=dtype)
    logits.fill_diagonal_(0)
    assert torch.equal(kernel(logits), torch.arange(600))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pair", [(0.0, -0.0), (-0.0, 0.0), (3.0, 3.0), (-2.0, -2.0)])
def test_the_first_of_equals(kernel, dtype, pair):
    for first, second in ((3, 4), (3, 300), (299, 511)):
        logits = torch.full((1, 512), -5.0, dtype=dtype)
        logits[0, first], logits[0, second] = pair
        assert kernel(logits).item() == first


def test_banned_ids_and_small_numbers(kernel):
    rows = [[-torch.inf, -1e30, -torch.inf], [-1e-45, -2e-45, 1e-45], [1.0, torch.inf, 2.0]]
    assert kernel(torch.tensor(rows)).tolist() == [1, 2, 1]


def test_a_row_without_a_number_has_some_id(kernel):
    ids = kernel(torch.full((2, 300), torch.nan))
    assert ((ids >= 0) & (ids < 300)).all()


def test_views_and_no_rows(kernel):
    logits = torch.randn(8, 64)
    for view in (logits[:, ::2], logits.T, logits[:0], logits[3:]):
        assert torch.equal(kernel(view), view.argmax(-1))


def test_misuse_is_refused(kernel):
    for bad in (torch.randn(4), torch.randn(2, 0), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(InvalidArgumentError, match="greedy_sample"):
            kernel(bad)


def test_where_nothing_is_compiled(kernel, monkeypatch):
    class Missing:
        def function(self):
            return None

    monkeypatch.setattr(sampling, "_KERNELS", dict.fromkeys(DTYPES, Missing()))
    logits = torch.randn(3, 100)
    assert torch.equal(kernel(logits), logits.argmax(-1))
