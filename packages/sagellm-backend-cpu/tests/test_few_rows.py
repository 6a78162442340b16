"""Linear of few rows: the same numbers as torch, and torch itself wherever the kernel does not fit."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import few_rows
from sagellm_backend.cpu.linear import SMALLEST

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)
ROWS = [(dtype, rows) for dtype, most in few_rows.ROWS.items() for rows in range(1, most + 1)]
INPUTS, OUTPUTS = 512, 300


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Have the kernel by vectors take weights of every size; the limit that it has otherwise."""
    limit = few_rows.SMALL
    monkeypatch.setattr(few_rows, "SMALL", 0)
    monkeypatch.setattr(few_rows, "MATRIX_ROWS", 0)
    return limit


def case(dtype, inputs=INPUTS, outputs=OUTPUTS, rows=1):
    return torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)


def assert_near(y, x, weight, bias=None):
    """Within one rounding of the exact sum, to a subnormal number too, and fp32's own errors."""
    bias = None if bias is None else bias.double()
    exact = functional.linear(x.double(), weight.double(), bias)
    reach = x.double().abs() @ weight.double().abs().T
    info = torch.finfo(y.dtype)
    bound = info.eps * exact.abs().clamp_min(info.smallest_normal) / 2 + 1e-5 * reach
    assert y.shape == exact.shape
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("inputs", [1, 7, 32, 576, 2047, 2048])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_rounded_once(dtype, inputs, with_bias):
    x, weight = case(dtype, inputs)
    bias = torch.randn(OUTPUTS).to(dtype) if with_bias else None
    y = few_rows.linear(x, weight, bias)
    assert y is not None
    assert_near(y, x, weight, bias)


@pytest.mark.parametrize(("dtype", "rows"), ROWS)
@pytest.mark.parametrize("outputs", [1, 5, 302])
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_number_of_rows(dtype, rows, outputs, with_bias):
    x, weight = case(dtype, 87, outputs, rows)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    y = few_rows.linear(x, weight, bias)
    assert y is not None
    assert_near(y, x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_whatever_the_others_are(dtype):
    most = few_rows.ROWS[dtype]
    x, weight = case(dtype, rows=most)
    together = few_rows.linear(x, weight, None)
    for count in range(1, most):
        assert torch.equal(few_rows.linear(x[:count], weight, None), together[:count])


@pytest.mark.parametrize(("dtype", "rows"), ROWS)
def test_nothing_is_written_beside_the_result(dtype, rows, monkeypatch):
    x, weight = case(dtype, 40, 13, rows)
    frame = torch.full((rows + 2, 13), 7, dtype=dtype)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *_: frame[1:-1])
    y = few_rows.linear(x, weight, None)
    assert y.data_ptr() == frame[1].data_ptr()
    assert (frame[0] == 7).all()
    assert (frame[-1] == 7).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_that_of_torch_bit_by_bit(dtype):
    """A product with 1 is exact, so only the rounding of the sum of two is left."""
    first, second = torch.randn(2, 4096).to(dtype), torch.randn(4096, 2).to(dtype)
    second[:, 1] *= torch.logspace(-6, 2, 4096).to(dtype)
    y = few_rows.linear(torch.ones(1, 2).to(dtype), second, None)
    assert torch.equal(y[0], second.float().sum(1).to(dtype))
    assert first.dtype is dtype


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_no_number_and_what_is_too_large_stay_so(dtype):
    largest = torch.finfo(dtype).max
    rows = [[torch.nan, 1], [torch.inf, 1], [-torch.inf, 1], [torch.inf, -torch.inf]]
    weight = torch.tensor([*rows, [largest, largest], [-0.0, -0.0]], dtype=dtype)
    y = few_rows.linear(torch.ones(1, 2, dtype=dtype), weight, None)
    expected = weight.float().sum(1).to(dtype)
    assert torch.equal(y[0].isnan(), expected.isnan())
    assert torch.equal(y[0].nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", HALVES)
def test_subnormals_are_kept(dtype):
    smallest = torch.finfo(dtype).smallest_normal / 2
    weight = torch.tensor([[smallest]], dtype=dtype)
    kept = few_rows.linear(torch.ones(1, 1, dtype=dtype), weight, None).item()
    # Processors that multiply pairs of bf16 flush them, as the provider's capability says.
    assert kept == smallest or (dtype is torch.bfloat16 and kept == 0)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype):
    x, weight = case(dtype, 2048, 1000)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(few_rows.linear(x, weight, None))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("shape", [(INPUTS,), (1, INPUTS), (1, 1, INPUTS)])
def test_every_shape_of_a_row(backend, shape):
    assert OUTPUTS * INPUTS >= SMALLEST
    x, weight = case(torch.bfloat16)
    y = backend.get_kernel("linear")(x.reshape(shape), weight)
    assert y.shape == (*shape[:-1], OUTPUTS)
    assert_near(y, x.reshape(shape), weight)


def test_a_row_out_of_a_wider_array():
    x, weight = torch.randn(INPUTS, 3).bfloat16(), case(torch.bfloat16)[1]
    row = x.T[1:2]
    assert_near(few_rows.linear(row, weight, None), row, weight)
    wide = torch.randn(1, 2 * INPUTS).bfloat16()[:, ::2]
    assert_near(few_rows.linear(wide, weight, None), wide, weight)


def test_few_rows_make_no_copy_of_the_weight(backend):
    x, weight = case(torch.bfloat16, 512, 4096, rows=4)
    kernel, before = backend.get_kernel("linear"), backend.memory_stats()["reserved_bytes"]
    for _ in range(3):
        kernel(x, weight)
    assert backend.memory_stats()["reserved_bytes"] == before


class TestLeftToTorch:
    def left(self, x, weight, bias=None):
        return few_rows.linear(x, weight, bias) is None

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_other_numbers_of_rows(self, dtype):
        for rows in (0, few_rows.ROWS[dtype] + 1):
            assert self.left(*case(dtype, rows=rows))

    def test_few_rows_of_a_small_weight(self, small, monkeypatch):
        monkeypatch.setattr(few_rows, "SMALL", small)
        for outputs, left in ((small // INPUTS - 1, True), (small // INPUTS, False)):
            for rows in (1, 2):
                assert self.left(*case(torch.float32, INPUTS, outputs, rows)) is left
        assert not self.left(*case(torch.float32, rows=3))
        assert not self.left(*case(torch.bfloat16))

    def test_other_dtypes_and_shapes(self):
        x, weight = case(torch.bfloat16)
        assert self.left(x.float(), weight)
        assert self.left(x.half(), weight)
        assert self.left(x.double(), weight.double())
        assert self.left(x.T, weight)
        assert self.left(x, weight.reshape(-1))

    def test_strides(self):
        x, weight = case(torch.bfloat16)
        assert self.left(x, weight.T.contiguous().T)
        assert self.left(x, weight, torch.randn(2 * OUTPUTS).bfloat16()[::2])

    def test_gradients(self, backend):
        x, weight = case(torch.bfloat16)
        weight = torch.nn.Parameter(weight)
        assert self.left(x, weight)
        backend.get_kernel("linear")(x, weight).sum().backward()
        assert weight.grad is not None
        with torch.no_grad():
            assert not self.left(x, weight)
        with torch.inference_mode():
            assert few_rows.linear(x, weight, None).is_inference()

    def test_a_bias_of_another_shape_or_dtype(self, backend):
        x, weight = case(torch.bfloat16)
        assert self.left(x, weight, torch.zeros(1).bfloat16())
        assert self.left(x, weight, torch.zeros(OUTPUTS))

    def test_tensors_without_memory(self):
        x, weight = case(torch.bfloat16)
        assert self.left(x.to("meta"), weight.to("meta"))
        with FakeTensorMode() as mode:
            assert self.left(mode.from_tensor(x), mode.from_tensor(weight))
        many = torch.randn(3, 1, INPUTS).bfloat16()
        y = torch.func.vmap(lambda row: functional.linear(row, weight))(many)
        kernel = torch.func.vmap(
            lambda row: functional.linear(row, weight) if self.left(row, weight) else torch.zeros(1)
        )
        assert torch.equal(kernel(many), y)

    def test_where_nothing_is_compiled(self, backend, monkeypatch):
        class Missing:
            def function(self):
                return None

        monkeypatch.setattr(few_rows, "_KERNELS", dict.fromkeys(HALVES, Missing()))
        x, weight = case(torch.bfloat16)
        assert self.left(x, weight)
        assert_near(backend.get_kernel("linear")(x, weight), x, weight)
