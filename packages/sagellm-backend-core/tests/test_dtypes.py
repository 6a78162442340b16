"""Data types: Protocol's names, every framework's names, sizes and rounding."""

from __future__ import annotations

from enum import Enum

import ml_dtypes
import numpy as np
import pytest

from sagellm_backend.dtypes import DType, dtype_of, parse_dtypes
from sagellm_backend.errors import InvalidArgumentError


class ProtocolDType(str, Enum):
    """As the published Protocol declares it."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT4 = "int4"


class FrameworkDType:
    """A dtype object as torch and paddle have them: only its name is known."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name


@pytest.mark.parametrize("member", list(DType))
def test_a_member_is_itself_and_its_name(member):
    assert DType.parse(member) is member
    assert DType.parse(member.value) is member
    assert member == member.value
    assert {member.value: 1}[member] == 1


@pytest.mark.parametrize("theirs", list(ProtocolDType))
def test_protocol_s_members_are_ours(theirs):
    assert DType.parse(theirs) == theirs
    assert {theirs: 1}[DType.parse(theirs)] == 1


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (FrameworkDType("torch.float32"), DType.FP32),
        (FrameworkDType("torch.bfloat16"), DType.BF16),
        (FrameworkDType("paddle.float16"), DType.FP16),
        (FrameworkDType("torch.float8_e4m3fn"), DType.FP8),
        (FrameworkDType("torch.int8"), DType.INT8),
        ("float32", DType.FP32),
        ("int64", DType.INT64),
        (np.float16, DType.FP16),
        (np.dtype(np.int32), DType.INT32),
        (np.dtype(ml_dtypes.bfloat16), DType.BF16),
        (ml_dtypes.float8_e4m3fn, DType.FP8),
        (ml_dtypes.int4, DType.INT4),
    ],
    ids=str,
)
def test_other_names_of_a_dtype(value, dtype):
    assert DType.parse(value) is dtype


@pytest.mark.parametrize(
    "value", ["fp64", "", "FP32", None, 16, [], np.float64, "float8_e5m2", object(), complex]
)
def test_what_is_no_dtype_is_refused_with_the_known_ones(value):
    with pytest.raises(InvalidArgumentError, match="is not a data type") as caught:
        DType.parse(value)
    assert "bf16" in caught.value.hint


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.INT4])
def test_bits_are_those_of_the_numpy_type(dtype):
    assert dtype.bits == 8 * dtype.numpy.itemsize
    assert DType.parse(dtype.numpy) is dtype


@pytest.mark.parametrize(
    ("dtype", "elements", "nbytes"),
    [(DType.FP32, 3, 12), (DType.INT4, 2, 1), (DType.INT4, 3, 2), (DType.FP8, 0, 0)],
)
def test_nbytes_packs_and_rounds_up(dtype, elements, nbytes):
    assert dtype.nbytes(elements) == nbytes


@pytest.mark.parametrize("dtype", [d for d in DType if d.is_floating])
def test_unit_roundoff_is_half_the_gap_above_one(dtype):
    assert dtype.unit_roundoff == float(ml_dtypes.finfo(dtype.numpy).eps) / 2


def test_integers_have_no_roundoff():
    assert [d for d in DType if not d.is_floating] == [
        DType.INT8,
        DType.INT4,
        DType.INT32,
        DType.INT64,
    ]
    with pytest.raises(InvalidArgumentError, match="int8 has no rounding error"):
        _ = DType.INT8.unit_roundoff


def test_the_dtype_of_an_array():
    assert dtype_of(np.zeros(2, np.float16)) is DType.FP16
    with pytest.raises(InvalidArgumentError, match="not list"):
        dtype_of([1.0])
    with pytest.raises(InvalidArgumentError, match="float64"):
        dtype_of(np.zeros(2))


def test_lists_of_dtypes_keep_their_order_without_repetition():
    assert parse_dtypes(["bf16", DType.FP32, np.float32]) == (DType.BF16, DType.FP32)
