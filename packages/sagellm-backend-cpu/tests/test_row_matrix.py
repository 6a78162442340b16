"""Linear of bf16 by the matrix unit: the numbers of torch, the same bits for a row in any company."""

import ctypes
import mmap

import pytest
import torch
from torch.nn import functional

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import few_rows, matrices

FEWEST = few_rows.ROWS[torch.bfloat16] + 1
ROWS = (FEWEST, 8, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 80, 81, 97, few_rows.MATRIX_ROWS)

pytestmark = pytest.mark.skipif(
    not matrices.available(matrices.BF16), reason="this processor has no matrix unit for bf16"
)


def case(rows, inputs=64, outputs=300):
    return torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()


def assert_near(y, x, weight, bias=None):
    """Within one rounding of the exact sum, and fp32's own errors."""
    bias = None if bias is None else bias.double()
    exact = functional.linear(x.double(), weight.double(), bias)
    reach = x.double().abs() @ weight.double().abs().T
    bound = torch.finfo(y.dtype).eps * exact.abs() / 2 + 1e-5 * reach
    assert y.shape == exact.shape
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [16, 17, 31, 40, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_rows_and_outputs_of_every_kind(rows, outputs, with_bias):
    x, weight = case(rows, 96, outputs)
    bias = torch.randn(outputs).bfloat16() if with_bias else None
    y = few_rows.linear(x, weight, bias)
    assert y is not None
    assert_near(y, x, weight, bias)


@pytest.mark.parametrize("inputs", [32, 64, 576, 2048])
def test_inputs(inputs):
    x, weight = case(8, inputs, 1000)
    assert_near(few_rows.linear(x, weight, None), x, weight)


@pytest.mark.parametrize("shape", [(2, 4, 64), (8, 1, 64), (3, 5, 64)])
def test_dimensions(shape):
    x, weight = torch.randn(shape).bfloat16(), case(1)[1]
    assert_near(few_rows.linear(x, weight, None), x, weight)


def test_a_row_has_the_same_bits_whatever_the_others_are():
    x, weight = case(few_rows.MATRIX_ROWS, 512)
    together = few_rows.linear(x, weight, None)
    for count in ROWS:
        assert torch.equal(few_rows.linear(x[:count], weight, None), together[:count])
    wild = x.clone()
    wild[1:] = torch.nan
    assert torch.equal(few_rows.linear(wild, weight, None)[0], together[0])


def test_what_is_no_number_stays_with_its_output():
    x, weight = case(8, 64, 50)
    plain = few_rows.linear(x, weight, None)
    weight[7, 3] = torch.inf
    y = few_rows.linear(x, weight, None)
    others = torch.arange(50) != 7
    assert torch.equal(y[:, others], plain[:, others])
    assert (y[:, 7] == torch.inf * x[:, 3].sign()).all()


def test_the_bits_do_not_depend_on_the_number_of_threads():
    x, weight = case(8, 2048, 1000)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(few_rows.linear(x, weight, None))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("rows", [8, 40, 128])
def test_nothing_is_written_beside_the_result(rows, monkeypatch):
    x, weight = case(rows, 64, 23)
    frame, empty = torch.full((rows + 2, 23), 7.0).bfloat16(), torch.Tensor.new_empty

    def framed(tensor, *shape):
        return frame[1:-1] if shape == (rows, 23) else empty(tensor, *shape)

    monkeypatch.setattr(torch.Tensor, "new_empty", framed)
    y = few_rows.linear(x, weight, None)
    assert y.data_ptr() == frame[1].data_ptr()
    assert (frame[0] == 7).all()
    assert (frame[-1] == 7).all()


@pytest.mark.parametrize("rows", [8, 17, 33, 48, 64, 97])
def test_nothing_is_read_behind_the_rows_and_the_weight(rows):
    tensors = case(rows, 64, 40)
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None)
    fenced, areas = [], []
    for tensor in tensors:
        size = -(-tensor.nbytes // page) * page
        area = mmap.mmap(-1, size + page)
        behind = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area)) + size)
        assert libc.mprotect(behind, ctypes.c_size_t(page), 0) == 0
        flat = torch.frombuffer(area, dtype=torch.bfloat16, count=size // 2)[-tensor.numel() :]
        fenced.append(flat.view(tensor.shape).copy_(tensor))
        areas.append(area)
    y = few_rows.linear(*fenced, None)
    assert torch.equal(y, few_rows.linear(*tensors, None))


def test_no_copy_of_the_weight_is_made():
    with CPUBackendProvider() as backend:
        x, weight = case(16, 512, 4096)
        kernel, before = backend.get_kernel("linear"), backend.memory_stats()["reserved_bytes"]
        for _ in range(3):
            assert_near(kernel(x, weight), x, weight)
        assert backend.memory_stats()["reserved_bytes"] == before


class TestLeftToTorch:
    def left(self, x, weight, bias=None):
        return few_rows.linear(x, weight, bias) is None

    def test_other_numbers_of_rows_inputs_and_outputs(self):
        assert not self.left(*case(8))
        assert self.left(*case(few_rows.MATRIX_ROWS + 1))
        long = few_rows.MATRIX_INPUTS + 32
        assert not self.left(*case(few_rows.MATRIX_ROWS // 2, inputs=long))
        assert self.left(*case(few_rows.MATRIX_ROWS // 2 + 1, inputs=long))
        assert self.left(*case(8, inputs=48))
        assert self.left(*case(8, outputs=15))

    def test_other_dtypes(self):
        x, weight = case(few_rows.ROWS[torch.float16] + 1)
        assert self.left(x.half(), weight.half())
        assert self.left(x.float(), weight.float())

    def test_where_there_is_no_unit(self, monkeypatch):
        few_rows._matrix_kernel.cache_clear()
        monkeypatch.setattr(few_rows.matrices, "available", lambda needed: False)
        assert self.left(*case(8))
        few_rows._matrix_kernel.cache_clear()
