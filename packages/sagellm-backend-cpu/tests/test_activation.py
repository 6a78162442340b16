"""SwiGLU by the compiled kernel: within a rounding of the exact value, and torch where it does not fit."""

import pytest
import torch

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import activation
from sagellm_backend.errors import InvalidArgumentError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def kernel():
    with CPUBackendProvider() as provider:
        yield provider.get_kernel("silu_and_mul")


def assert_near(y, x):
    gate, up = x.double().chunk(2, -1)
    exact = gate / (1 + (-gate).exp()) * up
    # exp of a number has as many times its rounding as the number has units.
    bound = torch.finfo(torch.float32).eps * (2 + gate.abs()) * exact.abs()
    bound += torch.finfo(x.dtype).eps / 2 * exact.abs() + torch.finfo(x.dtype).smallest_normal
    bound += up.abs() * 2.0**-120  # where exp leaves fp32
    assert y.shape == exact.shape
    assert y.dtype is x.dtype
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), (1, 34), (5, 66), (2, 3, 3072), (700, 34)])
@pytest.mark.parametrize("threads", [1, 3])
def test_each_element_is_rounded_once(kernel, dtype, shape, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = (4 * torch.randn(shape)).to(dtype)
        assert_near(kernel(x), x)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_of_any_size(kernel, dtype):
    gates = torch.cat([torch.linspace(-300, 300, 601), torch.linspace(-90, -86, 100)])
    x = torch.stack([gates, torch.ones_like(gates)]).reshape(1, -1).to(dtype)
    assert_near(kernel(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(kernel, dtype):
    ends = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0]
    x = torch.tensor([[gate for gate in ends for _ in ends] + len(ends) * ends], dtype=dtype)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(
        kernel(x), torch.nn.functional.silu(gate) * up, rtol=1e-2, atol=0, equal_nan=True
    )


def test_views_gradients_and_nothing_at_all(kernel):
    x = torch.randn(6, 64)
    for view in (x[:, ::2], x.T, x[:0], x[2:, :32]):
        assert_near(kernel(view), view)
    x.requires_grad_()
    kernel(x).sum().backward()
    assert x.grad is not None


def test_misuse_is_refused(kernel):
    for bad in (torch.randn(2, 5), torch.randn(2, 0), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(InvalidArgumentError, match="silu_and_mul"):
            kernel(bad)


def test_where_nothing_is_compiled(kernel, monkeypatch):
    class Missing:
        def function(self):
            return None

    monkeypatch.setattr(activation, "_KERNELS", dict.fromkeys(DTYPES, Missing()))
    x = torch.randn(2, 64)
    assert_near(kernel(x), x)
