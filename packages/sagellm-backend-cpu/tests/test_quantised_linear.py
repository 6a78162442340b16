"""Linear over int8 and int4 weights: near the reference, whatever computes it."""

import pytest
import torch
from torch.nn import functional

from sagellm_backend import CPUBackendProvider
from sagellm_backend.conformance.operations import examine_operations
from sagellm_backend.cpu import quantised
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.torch_support import quantised as plain

NAMES = ("linear_w8a16", "linear_w8a8", "linear_w4a16")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


class NoKernel:
    def function(self):
        return None


@pytest.fixture
def without_compiler(monkeypatch):
    kernels = dict.fromkeys(("int8", "int4", "matrix"), NoKernel())
    monkeypatch.setattr(quantised, "_KERNELS", kernels)
    quantised._matrix_kernel.cache_clear()
    yield
    quantised._matrix_kernel.cache_clear()


@pytest.fixture
def without_matrices(monkeypatch):
    monkeypatch.setattr(quantised, "_matrix_kernel", lambda: None)


def codes(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def int8_case(rows, inputs, outputs, dtype):
    x = torch.randn(rows, inputs).to(dtype)
    return x, codes(outputs, inputs), torch.rand(outputs) / 100, torch.randn(outputs).to(dtype)


def int4_case(rows, inputs, outputs, groups, dtype):
    x = torch.randn(rows, inputs).to(dtype)
    zero = torch.randint(0, 16, (outputs, groups), dtype=torch.int8)
    return x, codes(outputs, inputs // 2), torch.rand(outputs, groups) / 100, zero, None


def assert_near(y, x, weight, bias=None):
    """Within one rounding of the exact sum, and fp32's own errors."""
    exact = functional.linear(x.double(), weight, None if bias is None else bias.double())
    reach = x.double().abs() @ weight.abs().T
    bound = torch.finfo(y.dtype).eps * exact.abs() / 2 + 1e-5 * reach + 1e-6
    assert y.shape == exact.shape
    assert y.dtype is x.dtype
    assert ((y.double() - exact).abs() <= bound).all()


def floating(weight, scale, zero):
    """What int4 weights stand for, one by one."""
    rows = []
    parts = (weight.tolist(), scale.double().tolist(), zero.tolist())
    for row, scales, zeros in zip(*parts, strict=True):
        both = [half for byte in row for half in (byte % 256 % 16, byte % 256 // 16)]
        size = len(both) // len(scales)
        rows.append([(code - zeros[n // size]) * scales[n // size] for n, code in enumerate(both)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("seed", [11, 12])
def test_all_are_offered_and_conform(backend, seed):
    findings = examine_operations(backend, seed=seed, operations=NAMES)
    assert {item.operation for item in findings} == set(NAMES)
    assert not [item for item in findings if item.refused or not item.passed]


@pytest.mark.usefixtures("without_compiler")
def test_they_conform_without_a_compiler_and_without_torchs_private_product(backend, monkeypatch):
    monkeypatch.setattr(quantised, "int_mm", lambda: None)
    findings = examine_operations(backend, operations=NAMES)
    assert not [item for item in findings if item.refused or not item.passed]


@pytest.mark.usefixtures("without_matrices")
def test_they_conform_without_a_matrix_unit(backend):
    findings = examine_operations(backend, operations=("linear_w8a16",))
    assert findings
    assert not [item for item in findings if item.refused or not item.passed]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("inputs", [1, 15, 16, 17, 100, 576])
def test_int8_over_every_shape_of_a_tile(dtype, rows, inputs):
    """Tiles are 4 by 4, 1 by 8, 1 by 4 and 1 by 1; the last vector of a row may be a part of one."""
    for outputs in (1, 4, 7, 8, 13):
        x, weight, scale, bias = int8_case(rows, inputs, outputs, dtype)
        y = quantised._run("int8", x, weight, scale, None, bias, inputs)
        assert_near(y, x, weight.double() * scale.double()[:, None], bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_int4_over_every_shape_of_a_tile(dtype, rows, groups):
    for outputs in (1, 5, 12):
        case = int4_case(rows, 192, outputs, groups, dtype)
        x, weight, scale, zero, _ = case
        assert_near(quantised.linear_w4a16(*case), x, floating(weight, scale, zero))


def test_the_kernel_is_what_computes_few_rows(monkeypatch):
    """Where it is compiled: whatever falls back elsewhere is slow, and right."""
    if Kernel("int_linear", "int8").function() is None:
        pytest.skip("nothing is compiled on this machine")
    monkeypatch.setattr(plain, "linear_w8a16", None)
    monkeypatch.setattr(plain, "linear_w4a16", None)
    quantised.linear_w8a16(*int8_case(8, 64, 64, torch.float32))
    quantised.linear_w4a16(*int4_case(8, 64, 64, 2, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_and_many_agree(dtype):
    x, weight, scale, bias = int8_case(quantised.MAX_ROWS[dtype] + 1, 96, 40, dtype)
    many = quantised.linear_w8a16(x, weight, scale, bias)
    few = torch.cat([quantised.linear_w8a16(part, weight, scale, bias) for part in x.split(8)])
    # The many are multiplied by weights that were rounded to the dtype, and summed in another order.
    reach = x.float().abs() @ (weight * scale[:, None]).abs().T + 1
    assert ((many - few).abs() <= (2 * torch.finfo(dtype).eps + 1e-5) * reach).all()


def test_the_bits_do_not_depend_on_the_number_of_threads():
    case, before, found = int8_case(3, 576, 3000, torch.float32), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(quantised.linear_w8a16(*case))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_row_of_zeros_gives_the_bias_and_rows_do_not_touch_each_other():
    x, weight, scale, bias = int8_case(5, 64, 24, torch.float32)
    x[1], x[3] = 0, 1e6 * x[3]
    y = quantised.linear_w8a8(x, weight, scale, bias)
    assert torch.equal(y[1], bias)
    assert torch.equal(quantised.linear_w8a8(x[4:], weight, scale, bias), y[4:])


def test_torchs_product_of_int8_is_taken_where_it_is_right(monkeypatch):
    assert quantised.int_mm() is not None
    quantised.int_mm.cache_clear()

    class Wrong:
        default = staticmethod(lambda a, b: (a.int() @ b.int()).clamp(-(2**15), 2**15 - 1))

    monkeypatch.setattr(torch.ops.aten, "_int_mm", Wrong)
    assert quantised.int_mm() is None
    quantised.int_mm.cache_clear()


@pytest.mark.parametrize("unit", ["matrix", "vectors"])
def test_arrays_that_do_not_lie_as_the_kernel_reads(unit, request):
    if unit == "vectors":
        request.getfixturevalue("without_matrices")
    x, weight, scale, bias = int8_case(6, 64, 40, torch.float32)
    wanted = quantised.linear_w8a16(x, weight, scale, bias)
    others = (x.T.contiguous().T, weight.T.contiguous().T, scale.repeat(2, 1).T.contiguous()[:, 0])
    for number, other in enumerate(others):
        case = [x, weight, scale, bias]
        case[number] = other
        assert torch.allclose(quantised.linear_w8a16(*case), wanted, atol=1e-5)
    case = int4_case(3, 64, 8, 2, torch.float32)
    turned = case[0].T.contiguous().T
    assert torch.allclose(quantised.linear_w4a16(turned, *case[1:]), quantised.linear_w4a16(*case))


def test_gradients_of_the_input_are_torchs():
    x, weight, scale, _ = int8_case(2, 64, 8, torch.float32)
    x.requires_grad_()
    quantised.linear_w8a16(x, weight, scale).sum().backward()
    assert torch.allclose(x.grad[0], (weight * scale[:, None]).sum(0), atol=1e-5)


def test_groups_that_the_kernel_cannot_read_are_made_floating():
    case = int4_case(2, 48, 8, 2, torch.float32)
    assert_near(quantised.linear_w4a16(*case), case[0], floating(*case[1:4]))


def test_what_does_not_fit_is_refused_by_name(backend):
    kernel = backend.get_kernel("linear_w4a16", dtype="fp32", group_size=32)
    x, weight, scale, zero, _ = int4_case(2, 64, 8, 2, torch.float32)
    with pytest.raises(InvalidArgumentError, match=r"make no 3 groups"):
        kernel(x, weight, torch.ones(8, 3))
    with pytest.raises(InvalidArgumentError, match=r"zero has shape"):
        kernel(x, weight, scale, zero[:, :1])
    with pytest.raises(InvalidArgumentError, match=r"scale is fp16"):
        backend.get_kernel("linear_w8a16")(x, codes(8, 64), torch.ones(8).half())
