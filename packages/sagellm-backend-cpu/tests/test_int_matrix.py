"""Rows times an int8 weight by the matrix unit: the exact sum, rounded once."""

import math

import pytest
import torch

from sagellm_backend.cpu import quantised

pytestmark = pytest.mark.skipif(
    quantised._matrix_kernel() is None, reason="there is no matrix unit, or no compiler"
)


def codes(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def exact(x, weight, scale):
    """Right to the last bit in fp64 where the numbers of a row lie within some 20 bits of another."""
    return x.double() @ weight.double().T * scale.double()


def by_vectors(monkeypatch, *case):
    with monkeypatch.context() as patch:
        patch.setattr(quantised, "_matrix_kernel", lambda: None)
        return quantised.linear_w8a16(*case)


@pytest.mark.parametrize("inputs", [1, 3, 16, 17, 63, 64, 65, 576, 1000])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 11])
def test_every_output_that_fills_a_matrix_is_rounded_once(inputs, rows):
    """The last rows of a weight are summed up by vectors where a matrix would reach beyond its end."""
    for outputs in (16, 32, 48, 80):
        x = torch.randint(-(1 << 20), 1 << 20, (rows, inputs)).float() / 1024
        weight, scale = codes(outputs, inputs), torch.rand(outputs)
        y, wanted = quantised.linear_w8a16(x, weight, scale), exact(x, weight, scale)
        whole = outputs if inputs % 64 == 0 else (outputs - -(-64 // inputs)) // 16 * 16
        whole = max(0, whole)
        assert torch.equal(y[:, :whole], wanted[:, :whole].float())
        assert torch.allclose(
            y.double(), wanted, rtol=1e-5, atol=1e-5 * float(x.abs().sum(1).max())
        )


@pytest.mark.parametrize("power", [-149, -130, -126, -60, 0, 60, 100])
def test_all_sizes_of_numbers(power):
    x = torch.randint(-127, 128, (3, 64)).double().mul(2.0**power).float()
    weight, scale = codes(32, 64), torch.full((32,), 2.0**-10)
    assert torch.equal(quantised.linear_w8a16(x, weight, scale), exact(x, weight, scale).float())


@pytest.mark.parametrize("distance", [0, 8, 31, 32, 33, 60, 87, 88, 89, 120])
def test_a_small_number_beside_a_great_one_keeps_all_of_its_bits(distance):
    """What the great one does not hide: its weights are zero. From 2**88 on by vectors."""
    x = torch.full((2, 64), 2.0**-distance)
    x[:, 1] = (1 + 2**-23) * 2.0**-distance
    x[0, 5] = 1.5
    weight, scale = codes(16, 64), torch.ones(16)
    weight[:, 5] = 0
    y = quantised.linear_w8a16(x, weight, scale)
    wanted = exact(x, weight, scale)
    assert ((y.double() - wanted).abs() <= 1e-6 * 2.0**-distance * 64 * 128).all()
    if distance < 88:
        assert torch.equal(y, wanted.float())


def test_a_row_that_cannot_be_digits_does_not_touch_the_others(monkeypatch):
    x, weight, scale, bias = torch.randn(6, 128), codes(48, 128), torch.rand(48), torch.randn(48)
    plain = quantised.linear_w8a16(x, weight, scale, bias)
    x[1, 7], x[3, 9], x[4, 100] = math.inf, math.nan, 1e38
    x[4, 2] = 1e-38
    x[5] = 0
    y = quantised.linear_w8a16(x, weight, scale, bias)
    assert torch.equal(y[[0, 2]], plain[[0, 2]])
    assert torch.equal(y[5], bias)
    wanted = by_vectors(monkeypatch, x, weight, scale, bias)
    assert torch.equal(y[1].isnan(), wanted[1].isnan())
    assert torch.equal(y[[1, 3, 4]].isfinite(), wanted[[1, 3, 4]].isfinite())
    assert torch.equal(y[4], wanted[4])


@pytest.mark.parametrize("rows", [1, 2, 7, 40, 128])
def test_a_row_alone_has_the_bits_that_it_has_among_others(rows):
    x, weight, scale, bias = torch.randn(rows, 200), codes(100, 200), torch.rand(100), None
    x *= 10.0 ** torch.randint(-6, 6, x.shape)
    y = quantised.linear_w8a16(x, weight, scale, bias)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(quantised.linear_w8a16(x[row], weight, scale, bias), y[row])


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(300, 100, 208), (50, 4096, 64), (129, 64, 1008)]
)
def test_many_rows_in_blocks_and_outputs_in_chunks(rows, inputs, outputs):
    case = (
        torch.randn(rows, inputs),
        codes(outputs, inputs),
        torch.rand(outputs),
        torch.randn(outputs),
    )
    y = quantised.linear_w8a16(*case)
    parts = [quantised.linear_w8a16(part, *case[1:]) for part in case[0].split(8)]
    assert torch.equal(y, torch.cat(parts))
    assert torch.allclose(y.double(), exact(*case[:3]) + case[3].double(), rtol=1e-6, atol=1e-3)


def test_extreme_weights_and_numbers_fill_no_sum():
    x = torch.full((1, 1 << 17), 2.0 - 2**-23)
    weight = torch.full((16, 1 << 17), -128, dtype=torch.int8)
    y = quantised.linear_w8a16(x, weight, torch.ones(16))
    assert torch.equal(y, exact(x, weight, torch.ones(16)).float())


def test_what_is_too_great_for_fp32_becomes_infinite():
    x, weight = torch.full((1, 64), 1e38), torch.full((16, 64), 127, dtype=torch.int8)
    assert (quantised.linear_w8a16(x, weight, torch.ones(16)) == math.inf).all()


def test_memory_is_kept_between_calls_unless_it_is_large():
    scratch = quantised._Scratch()
    first = scratch.of(1 << 10)
    assert first % 64 == 0
    assert scratch.of(1 << 9) == first
    scratch.of(quantised._KEPT + 1)
    assert scratch.size > quantised._KEPT
    scratch.of(1 << 10)
    assert scratch.size == 1 << 10


def test_threads_of_python_multiply_at_once():
    from concurrent.futures import ThreadPoolExecutor

    cases = [(torch.randn(3, 576), codes(320, 576), torch.rand(320)) for _ in range(4)]
    wanted = [quantised.linear_w8a16(*case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            found = list(pool.map(lambda case: quantised.linear_w8a16(*case), cases))
            assert all(map(torch.equal, found, wanted))
