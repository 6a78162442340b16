"""Half-precision norms are in the order of transformers: normalise in fp32, round, then scale.

Sums of squares are taken in another order than torch's, which tips a rounding here and there.
"""

import pytest
import torch
from transformers.models.llama import modeling_llama as modeling

from sagellm_backend import CPUBackendProvider

HALVES = (torch.float16, torch.bfloat16)
SHAPES = ((1, 1), (1, 576), (7, 33), (2, 3, 64), (5, 4096))
EPS = 1e-5
TIPPED = 1 / 500


@pytest.fixture(scope="module")
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def norm(weight):
    module = modeling.LlamaRMSNorm(len(weight), EPS)
    module.weight = torch.nn.Parameter(weight)
    return torch.no_grad()(module)


def differing(found, wanted):
    """The part of the elements that differ at all; none by more than two roundings."""
    tolerance = 2 * torch.finfo(found.dtype).eps
    assert torch.allclose(found.double(), wanted.double(), rtol=tolerance, atol=0)
    return (found != wanted).double().mean().item()


def inputs(dtype, *shape, scale=1.0):
    torch.manual_seed(0)
    return (scale * torch.randn(*shape)).to(dtype), (1 + torch.randn(shape[-1])).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_rms_norm_is_that_of_transformers(backend, dtype, shape, scale):
    x, weight = inputs(dtype, *shape, scale=scale)
    kernel = backend.get_kernel("rms_norm", dtype=dtype)
    assert differing(kernel(x, weight, EPS), norm(weight)(x)) <= TIPPED


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm_is_an_addition_and_that_of_transformers(backend, dtype, shape):
    x, weight = inputs(dtype, *shape)
    residual = torch.randn(shape).to(dtype)
    kernel = backend.get_kernel("add_rms_norm", dtype=dtype)
    y, total = kernel(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert differing(y, norm(weight)(x + residual)) <= TIPPED


@pytest.mark.parametrize("dtype", HALVES)
def test_a_fused_norm_would_differ_in_many(dtype):
    x, weight = inputs(dtype, 5, 4096)
    fused = torch.rms_norm(x, weight.shape, weight, EPS)
    assert differing(fused, norm(weight)(x)) > 100 * TIPPED


@pytest.mark.parametrize("largest", [256.0, 1e4, 65504.0])
def test_large_fp16_activations_do_not_overflow(backend, largest):
    x, weight = inputs(torch.float16, 3, 256)
    x[1, 7] = largest
    y = backend.get_kernel("rms_norm", dtype="fp16")(x, weight, EPS)
    wide = x.double()
    exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight.double()
    assert differing(y, norm(weight)(x)) <= TIPPED
    assert y[1].count_nonzero() > 1
    assert torch.allclose(y.double(), exact, rtol=2e-3, atol=1e-4)
