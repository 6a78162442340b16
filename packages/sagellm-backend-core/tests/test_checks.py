"""The checks of arguments: what is taken, and that everything else is one typed refusal."""

from fractions import Fraction
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagellm_backend.checks import (
    MAX_BYTES,
    MAX_DIMS,
    check_choice,
    check_ids,
    check_int,
    check_seconds,
    check_shape,
    check_type,
    shown,
)
from sagellm_backend.errors import InvalidArgumentError

ENDLESS = 10**5000
"""Python refuses to write this number out in decimal."""


class Mute:
    def __repr__(self):
        raise RuntimeError("no words")


def cases(*values):
    """Each value as a parameter, named by its type and place."""
    return [pytest.param(v, id=f"{type(v).__name__}-{i}") for i, v in enumerate(values)]


JUNK = cases(None, True, np.True_, 1.0, float("nan"), "1", b"1", [1], (), {}, object(), Mute(), 1j)


@pytest.mark.parametrize("value", JUNK)
def test_check_int_refuses_what_is_no_integer(value):
    with pytest.raises(InvalidArgumentError, match=r"^n must be an integer"):
        check_int("n", value)


@pytest.mark.parametrize("value", cases(7, np.int8(7), np.uint64(7)))
def test_check_int_gives_a_plain_int(value):
    assert type(check_int("n", value)) is int
    assert check_int("n", value) == 7


@pytest.mark.parametrize("value", cases(0, -1, 11, -(10**300), ENDLESS, -ENDLESS))
def test_check_int_refuses_what_lies_outside(value):
    with pytest.raises(InvalidArgumentError, match="within 1 and 10") as caught:
        check_int("n", value, low=1, high=10)
    assert caught.value.numbers == {"value": value, "low": 1, "high": 10}


def test_check_int_takes_both_ends():
    assert [check_int("n", value, low=1, high=10) for value in (1, 10)] == [1, 10]


@pytest.mark.parametrize(
    "value",
    cases(
        None,
        True,
        "3",
        0,
        -1.0,
        float("nan"),
        float("inf"),
        10**400,
        ENDLESS,
        Fraction(10**400),
        1j,
    ),
)
def test_check_seconds_refuses_what_is_no_finite_positive_number(value):
    with pytest.raises(InvalidArgumentError, match=r"^t must be"):
        check_seconds("t", value)


@pytest.mark.parametrize("value", cases(1, 0.5, np.float32(0.5), Fraction(1, 2)))
def test_check_seconds_gives_a_float(value):
    assert check_seconds("t", value) == float(value)


@pytest.mark.parametrize("value", cases(None, "C", b"A", 1, ["A"], np.array(["A", "B"]), Mute()))
def test_check_choice_refuses_what_is_not_offered(value):
    with pytest.raises(InvalidArgumentError, match="must be one of 'A', 'B'"):
        check_choice("order", value, ("A", "B"))


def test_check_choice_and_check_type_give_the_value_back():
    assert check_choice("order", "B", ("A", "B")) == "B"
    value = [1]
    assert check_type("x", value, list) is value
    with pytest.raises(InvalidArgumentError, match="x must be a dict, not list"):
        check_type("x", value, dict)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [(3, (3,)), ((), ()), ([2, 3], (2, 3)), ((0, 5), (0, 5)), ((np.int64(2),), (2,))],
)
def test_check_shape_gives_a_tuple_of_ints(shape, wanted):
    checked = check_shape(shape, 32)
    assert checked == wanted
    assert all(type(size) is int for size in checked)


@pytest.mark.parametrize(
    "shape",
    cases(
        None,
        True,
        2.0,
        "23",
        b"23",
        bytearray(b"23"),
        {2: 3},
        {2, 3},
        count(),  # endless: must not be walked through
        (size for size in (2, 3)),
        (2, -1),
        (2, None),
        (2.0,),
        (True,),
        (float("nan"),),
        ((2, 3),),
        (1,) * (MAX_DIMS + 1),
        (2**62, 2),
        (2**62 + 1,),
        (0, 2**61, 2**61),
        ENDLESS,
        Mute(),
    ),
)
def test_check_shape_refuses_everything_else(shape):
    with pytest.raises(InvalidArgumentError):
        check_shape(shape, 32)


def test_check_shape_counts_bits_up_to_the_limit():
    assert check_shape((MAX_BYTES // 4,), 32) == (MAX_BYTES // 4,)
    with pytest.raises(InvalidArgumentError, match="too large"):
        check_shape((MAX_BYTES // 4 + 1,), 32)
    assert check_shape((MAX_BYTES,), 4) == (MAX_BYTES,)


@pytest.mark.parametrize(
    "ids",
    cases(
        [3, 0, 9],
        (3, 0, 9),
        np.array([3, 0, 9], np.int8),
        np.array([3, 0, 9], np.uint64),
        np.array([3, 0, 9], ">i4"),
        np.array([3, 7, 0, 7, 9])[::2],
        np.ma.array([3, 0, 9]),
        [np.int32(3), 0, np.uint8(9)],
    ),
)
def test_check_ids_gives_int64(ids):
    checked = check_ids(ids, 10)
    assert type(checked) is np.ndarray
    assert checked.dtype == np.int64
    assert checked.tolist() == [3, 0, 9]


@pytest.mark.parametrize("ids", cases([], (), range(0), range(5, 2), np.empty(0, np.int32)))
def test_check_ids_takes_none(ids):
    assert check_ids(ids, 10).tolist() == []


def test_check_ids_takes_ranges():
    assert check_ids(range(2, 9, 3), 10).tolist() == [2, 5, 8]
    assert check_ids(range(9, -1, -9), 10).tolist() == [9, 0]


@pytest.mark.parametrize(
    "ids",
    cases(
        None,
        3,
        "12",
        b"12",
        {1, 2},
        {1: 2},
        count(),
        [1.0],
        [1, 2.5],
        [float("nan")],
        [None],
        ["1"],
        [True],
        [True, 2],
        [np.True_, 2],
        [[1], [2]],
        [[1], [2, 3]],
        [Mute()],
        [10],
        [-1],
        [2**63],
        [2**64],
        [-(2**63) - 1],
        [ENDLESS],
        np.array([1.0]),
        np.array([True]),
        np.array(1),
        np.array([[1]]),
        np.array([10]),
        np.array([2**64 - 1], np.uint64),
        np.array([-1], np.int8),
        np.array(["1"]),
        np.array([1], object),
        range(11),
        range(-1, 3),
        range(3, -2, -1),
        range(10**30),
        range(-(10**30), 10**30, 10**29),
    ),
)
def test_check_ids_refuses_everything_else(ids):
    with pytest.raises(InvalidArgumentError):
        check_ids(ids, 10)


def test_the_refusal_of_an_id_names_it_and_the_pool():
    with pytest.raises(InvalidArgumentError, match=r"Block 10 does not exist.*0 to 9") as caught:
        check_ids([0, 10, 11], 10)
    assert caught.value.numbers == {"block": 10, "num_blocks": 10}


@given(st.lists(st.integers(-3, 12)))
def test_check_ids_judges_lists_arrays_and_ids_alike(ids):
    good = all(0 <= number < 10 for number in ids)
    for form in (ids, tuple(ids), np.array(ids, np.int64), np.array(ids, np.int16)):
        if good:
            assert check_ids(form, 10).tolist() == ids
        else:
            with pytest.raises(InvalidArgumentError):
                check_ids(form, 10)


@pytest.mark.parametrize(
    "value", cases(Mute(), ENDLESS, [ENDLESS], "x" * 10**6, list(range(10**6)))
)
def test_a_text_for_a_message_is_short_and_never_fails(value):
    assert 0 < len(shown(value)) < 200
