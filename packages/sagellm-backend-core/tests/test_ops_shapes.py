from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops.shapes import infer, match


def arrays(**shapes):
    return {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}


def test_names_bind_across_arguments():
    found = match("f", {"x": "... i", "w": "o i"}, arrays(x=(2, 3, 4), w=(5, 4)))
    assert found == {"...": (2, 3), "i": 4, "o": 5}
    assert infer("... o", found) == (2, 3, 5)
    assert infer("2*o i", found) == (10, 4)
    assert infer("", found) == ()


def test_group_may_be_nothing_and_scalars_have_no_size():
    assert match("f", {"x": "... d", "s": ""}, arrays(x=(4,), s=())) == {"...": (), "d": 4}


def test_multiples_and_numbers():
    assert match("f", {"x": "2*d 3"}, arrays(x=(8, 3))) == {"d": 4}


def test_lists_are_shapes_too():
    assert match("f", {"x": "t d"}, arrays(x=[2, 3])) == {"t": 2, "d": 3}


@pytest.mark.parametrize(
    ("specs", "shapes", "words"),
    [
        ({"x": "t d"}, {"x": (3,)}, ["f: x has shape (3,)", "(t d)", "2 sizes are needed"]),
        ({"x": "... t d"}, {"x": (3,)}, ["at least 2 sizes"]),
        ({"x": "t d", "w": "d"}, {"x": (3, 4), "w": (5,)}, ["w has", "d is 5 here and 4 in x"]),
        ({"x": "... d", "y": "..."}, {"x": (2, 4), "y": (3,)}, ["... is (3,) here and (2,) in x"]),
        ({"x": "2*d"}, {"x": (7,)}, ["7 is no multiple of 2"]),
        ({"x": "3"}, {"x": (4,)}, ["must be 3"]),
        ({"x": "t d"}, {"x": (3, 0)}, ["d is 0"]),
    ],
)
def test_refusals_name_everything(specs, shapes, words):
    with pytest.raises(InvalidArgumentError) as caught:
        match("f", specs, arrays(**shapes))
    for word in words:
        assert word in str(caught.value)


def test_rows_may_be_none():
    assert match("f", {"x": "t d"}, arrays(x=(0, 3)))["t"] == 0


@pytest.mark.parametrize("spec", ["d*2", "t ... d", "2*", "a-b"])
def test_malformed_specs_are_refused(spec):
    with pytest.raises(ValueError, match="no size in shape spec"):
        match("f", {"x": spec}, arrays(x=(1, 1, 1)))


sizes = st.integers(1, 9)


@given(lead=st.lists(sizes, max_size=3), inner=sizes, outer=sizes, data=st.data())
def test_only_the_bound_shape_fits(lead, inner, outer, data):
    specs = {"x": "... i", "w": "o i", "y": "... 2*o"}
    shape = (*lead, 2 * outer)
    good = arrays(x=(*lead, inner), w=(outer, inner), y=shape)
    bindings = match("f", specs, good)
    assert infer("... 2*o", bindings) == shape
    other = tuple(data.draw(st.lists(sizes, max_size=4).filter(lambda got: tuple(got) != shape)))
    with pytest.raises(InvalidArgumentError):
        match("f", specs, {**good, **arrays(y=other)})
