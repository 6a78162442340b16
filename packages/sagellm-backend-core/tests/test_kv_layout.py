"""KV layouts: sizes, the text form, and what is refused."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kv import KVLayout

GOOD = {"num_layers": 2, "num_kv_heads": 4, "head_dim": 32, "block_size": 16, "dtype": DType.BF16}
JUNK = [None, True, 1.5, float("nan"), float("inf"), 0, -1, 1 << 25, 10**5000, [1], object()]
SIZES = ["num_layers", "num_kv_heads", "head_dim", "block_size", "alignment"]

layouts = st.builds(
    KVLayout,
    num_layers=st.integers(1, 128),
    num_kv_heads=st.integers(1, 64),
    head_dim=st.integers(1, 512),
    block_size=st.integers(1, 256),
    dtype=st.sampled_from(DType),
    order=st.sampled_from(["NHD", "HND"]),
    packing=st.sampled_from(["separate", "packed"]),
    alignment=st.just(1),
    index_dtype=st.sampled_from([DType.INT32, DType.INT64]),
)


@given(layouts)
def test_the_text_form_gives_the_layout_back(layout):
    again = KVLayout.from_json(layout.to_json())
    assert again == layout
    assert hash(again) == hash(layout)
    assert again.to_json() == layout.to_json()


def test_the_text_form_is_plain_sorted_json():
    data = json.loads(KVLayout(**GOOD).to_json())
    assert list(data) == sorted(data)
    assert data == {
        **GOOD,
        "dtype": "bf16",
        "order": "NHD",
        "packing": "separate",
        "alignment": 64,
        "index_dtype": "int32",
    }


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="None"),
        pytest.param(5, id="number"),
        pytest.param("", id="empty"),
        pytest.param("{", id="unfinished"),
        pytest.param("[]", id="list"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="missing"),
        pytest.param('{"num_layers": 1}', id="few"),
        pytest.param(b"\xff\xfe", id="bytes"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("9" * 10_000, id="long"),
        pytest.param(KVLayout(**GOOD).to_json().replace("16", "NaN"), id="nan"),
        pytest.param(KVLayout(**GOOD).to_json().replace("16", "16.0"), id="float"),
        pytest.param(KVLayout(**GOOD).to_json().replace("16", "true"), id="bool"),
        pytest.param(KVLayout(**GOOD).to_json().replace("NHD", "DNH"), id="order"),
        pytest.param(KVLayout(**GOOD).to_json().replace('"bf16"', '["bf16"]'), id="dtype"),
        pytest.param(KVLayout(**GOOD).to_json().replace("order", "sort"), id="key"),
    ],
)
def test_text_that_is_no_layout_is_refused(text):
    with pytest.raises(InvalidArgumentError):
        KVLayout.from_json(text)


@given(layouts, st.integers(1, 1000))
def test_sizes_are_those_of_numpy_arrays(layout, num_blocks):
    one = np.empty(layout.block_shape, np.uint8).size * layout.dtype.bits
    assert layout.block_bytes == -(-one // 8)
    assert layout.page_bytes == 2 * layout.num_layers * layout.block_bytes
    assert layout.nbytes(num_blocks) == num_blocks * layout.page_bytes


@given(layouts, st.integers(0, 10**6))
def test_tokens_need_as_many_blocks_as_cover_them(layout, tokens):
    blocks = layout.blocks_for(tokens)
    assert blocks * layout.block_size >= tokens
    assert (blocks - 1) * layout.block_size < tokens or blocks == 0


def test_a_block_lies_in_its_order():
    assert KVLayout(**GOOD).block_shape == (16, 4, 32)
    assert KVLayout(**GOOD, order="HND").block_shape == (4, 16, 32)


def test_dtypes_are_read_in_every_form():
    for dtype in ("bfloat16", "bf16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        assert KVLayout(**{**GOOD, "dtype": dtype}) == KVLayout(**GOOD)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [pytest.param(v, id=f"{i}") for i, v in enumerate(JUNK)])
def test_sizes_that_are_none_are_refused_by_name(name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        KVLayout(**{**GOOD, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", None),
        ("dtype", "float64"),
        ("dtype", []),
        ("order", "nhd"),
        ("order", None),
        ("order", ["NHD"]),
        ("packing", "both"),
        ("packing", 1),
        ("index_dtype", "fp32"),
        ("index_dtype", DType.INT8),
        ("alignment", 48),
    ],
)
def test_words_that_are_none_are_refused(name, value):
    with pytest.raises(InvalidArgumentError):
        KVLayout(**{**GOOD, name: value})


def test_a_block_that_breaks_the_alignment_is_refused_with_both_numbers():
    small = {**GOOD, "num_kv_heads": 1, "head_dim": 8, "block_size": 3}
    with pytest.raises(InvalidArgumentError, match=r"48 bytes.*alignment 64") as caught:
        KVLayout(**small)
    assert caught.value.numbers == {"block_bytes": 48, "alignment": 64}
    assert KVLayout(**small, alignment=16).block_bytes == 48


def test_a_layout_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        KVLayout(**GOOD).block_size = 8
