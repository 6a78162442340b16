"""Quantised weights on the host, and what the references make of them."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagellm_backend.conformance.case import plan
from sagellm_backend.conformance.operations import examine_operations
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops import OPERATIONS, operation
from sagellm_backend.ops.quantised import dequantise_int4, quantise_rows, unpack_int4
from sagellm_backend.quantization import pack_int4, quantize_int4, quantize_int8
from sagellm_backend.reference.kernels import make_kernel
from sagellm_backend.reference.provider import ReferenceProvider


def weight(rows=9, inputs=64, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((rows, inputs)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_int8_is_the_nearest_weight(dtype):
    original = weight(dtype=dtype)
    codes, scale = quantize_int8(original)
    assert (codes.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (9,))
    assert np.array_equal(np.abs(codes).max(axis=1), np.full(9, 127))
    errors = np.abs(codes * scale[:, None].astype(np.float64) - original.astype(np.float64))
    assert (errors <= scale[:, None] * 0.5001).all()


def test_rows_of_zeros_stay_zeros():
    original = weight(3)
    original[1] = 0
    codes, scale = quantize_int8(original)
    assert scale[1] == 0
    assert not codes[1].any()
    packed, scales = quantize_int4(original, 16)
    assert not scales[1].any()
    assert not dequantise_int4(packed, scales, None)[1].any()


@pytest.mark.parametrize("group_size", [2, 16, 64])
def test_int4_is_the_nearest_weight(group_size):
    original = weight()
    packed, scale = quantize_int4(original, group_size)
    assert (packed.dtype, packed.shape) == (np.int8, (9, 32))
    assert scale.shape == (9, 64 // group_size)
    errors = np.abs(dequantise_int4(packed, scale, None) - original)
    assert (errors <= np.repeat(scale, group_size, axis=1) * 0.5001).all()


@given(st.lists(st.integers(0, 15), min_size=0, max_size=40).filter(lambda n: len(n) % 2 == 0))
def test_packing_is_undone_by_unpacking(codes):
    packed = pack_int4(np.array(codes, np.int64))
    assert unpack_int4(packed).tolist() == codes


def test_the_even_code_lies_in_the_low_half():
    assert pack_int4(np.array([[1, 2, 15, 8]])).view(np.uint8).tolist() == [[0x21, 0x8F]]


def test_the_words_of_compressed_tensors_are_this_layout_read_as_bytes():
    """They hold eight codes in an int32, the first in its lowest bits."""
    codes = np.random.default_rng(1).integers(0, 16, (3, 16))
    words = sum(codes[:, n::8].astype(np.int64) << 4 * n for n in range(8))
    packed = words.astype(np.uint32).astype("<u4").view(np.int8).reshape(3, 8)
    assert np.array_equal(pack_int4(codes), packed)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.ones((2, 2), np.int8), "fp32, fp16 or bf16"),
        (np.ones(3, np.float32), "matrix"),
        (np.ones((0, 3), np.float32), "matrix"),
        (np.array([[1.0, np.nan]], np.float32), r"\(0, 1\) is nan"),
        (np.array([[np.inf]], np.float16), r"\(0, 0\) is inf"),
    ],
)
def test_what_is_no_weight_is_refused(bad, words):
    for quantize in (quantize_int8, lambda array: quantize_int4(array, 2)):
        with pytest.raises(InvalidArgumentError, match=words):
            quantize(bad)


@pytest.mark.parametrize("group_size", [3, 0, 5, 128, True, "32"])
def test_groups_that_do_not_part_the_rows_are_refused(group_size):
    with pytest.raises(InvalidArgumentError, match="group_size"):
        quantize_int4(weight(), group_size)


@pytest.mark.parametrize("codes", [[1, 16], [-1, 1], [1], [1.0, 2.0]])
def test_what_is_no_pair_of_codes_is_refused(codes):
    with pytest.raises(InvalidArgumentError, match=r"[Cc]odes"):
        pack_int4(np.array(codes))


def test_rows_are_quantised_as_the_contract_says():
    x = np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0], [-254, 3, 1, 2]], np.float32)
    codes, scale = quantise_rows(x)
    assert codes.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 2, 0, 1]]
    assert scale[:, 0].tolist() == [1, 0, 2]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_quantised_product_is_near_the_floating_one(seed):
    """int8 loses under a hundredth, int4 in groups of 32 under a tenth of such a product."""
    rng = np.random.default_rng(seed)
    x, original = (rng.standard_normal((rows, 256)).astype(np.float32) for rows in (8, 40))
    exact = x @ original.T
    codes, scale = quantize_int8(original)
    packed, scales = quantize_int4(original, 32)
    for name, parts, limit in (
        ("linear_w8a16", (codes, scale), 0.01),
        ("linear_w8a8", (codes, scale), 0.02),
        ("linear_w4a16", (packed, scales), 0.15),
    ):
        got = operation(name).reference(x, *parts)
        assert np.linalg.norm(got - exact) < limit * np.linalg.norm(exact), name


def test_the_group_size_of_a_call_is_known_when_a_kernel_is_chosen():
    found = operation("linear_w4a16")
    packed, scale = quantize_int4(weight(), 16)
    arguments = found.bind((np.ones((1, 64), np.float32), packed, scale), {})
    assert found.statics_of(arguments) == {"dtype": DType.FP32, "group_size": 16}


def test_zero_points_and_groups_are_looked_at():
    found = operation("linear_w4a16")
    packed, scale = quantize_int4(weight(), 16)
    x = np.ones((1, 64), np.float32)
    zero = np.full(scale.shape, 16, np.int8)
    with pytest.raises(InvalidArgumentError, match="zero lies within 16 and 16"):
        found.check_values(found.bind((x, packed, scale, zero), {}))
    with pytest.raises(InvalidArgumentError, match="64 inputs make no 3 groups"):
        found.check(found.bind((x, packed, np.ones((9, 3), np.float32)), {}))


QUANTISED = ("linear_w8a16", "linear_w8a8", "linear_w4a16")


class WithoutThem(ReferenceProvider):
    """A backend that has no kernels for quantised weights, and does not say that it has."""

    def _register_kernels(self, table):
        for name in set(OPERATIONS) - set(QUANTISED):
            table.register(name, make_kernel(operation(name), self), name="numpy")

    def _capability(self):
        claims = super()._capability()
        kept = {name: found for name, found in claims.operations.items() if name not in QUANTISED}
        return replace(claims, operations=kept)


def test_a_backend_may_go_without_them_and_says_why():
    with WithoutThem() as backend:
        planned = plan(backend.capability(), ("kernels",), "standard")
        reasons = {item.id: item.detail for item in planned.not_applicable}
        found = examine_operations(backend, operations=QUANTISED)
        assert all(item.passed and item.refused for item in found)
        for name in QUANTISED:
            assert not [item for item in planned.cases if name in item.id]
            assert reasons[f"kernels.{name}"] == f"{name} is declared in no dtype"
            assert backend.supports(name, dtype="fp32") == [
                f"no implementation of {name} is registered"
            ]
