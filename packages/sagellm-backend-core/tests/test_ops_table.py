from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagellm_backend.conformance.operations import cases
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import InvalidArgumentError, OperatorNotFoundError
from sagellm_backend.ops import OPERATIONS, operation
from sagellm_backend.ops.args import FLOATING, Accuracy
from sagellm_backend.ops.shapes import infer
from sagellm_backend.ops.table import declare

EVERY = [pytest.param(op, dtype, id=f"{op.name}-{dtype.value}")
         for op in OPERATIONS.values() for dtype in FLOATING]  # fmt: skip

FIRST_SET = {
    "linear", "matmul", "embedding", "rms_norm", "add_rms_norm", "layer_norm", "silu_and_mul",
    "gelu", "softmax", "rope", "kv_write", "attention", "greedy_sample", "sample",
    "linear_w8a16", "linear_w8a8", "linear_w4a16",
}  # fmt: skip


class Opaque:
    """An array of some device: a shape and a dtype, and data that nobody may read."""

    def __init__(self, array):
        self.shape, self.dtype = array.shape, array.dtype

    def __array__(self, *_args, **_kwargs):
        raise AssertionError("device data was read")

    def __getitem__(self, _key):
        raise AssertionError("device data was read")

    def __iter__(self):
        raise AssertionError("device data was read")


def test_table_is_complete_and_read_only():
    assert set(OPERATIONS) == FIRST_SET
    with pytest.raises(TypeError):
        OPERATIONS["x"] = None


def test_aliases_are_true_synonyms():
    assert operation("rmsnorm") is operation("rms_norm")
    assert operation("layernorm") is operation("layer_norm")


@pytest.mark.parametrize("name", ["rms_nrom", "", None, 3, ["x"]])
def test_unknown_names_list_the_known(name):
    with pytest.raises(OperatorNotFoundError, match=r"There are .*rms_norm"):
        operation(name)


def test_near_misses_are_suggested():
    with pytest.raises(OperatorNotFoundError, match="did you mean 'rms_norm'"):
        operation("rms_nrom")


def test_a_name_is_declared_once():
    with pytest.raises(ValueError, match="twice"):

        @declare(args={}, returns=(), accuracy=Accuracy.EXACT, kind=None, inputs=None)
        def rmsnorm():
            """A second owner of an alias."""


@pytest.mark.parametrize(("op", "dtype"), EVERY)
def test_cases_keep_the_contract(op, dtype):
    labels = []
    for case in cases(op, dtype, seed=1):
        labels.append(case.label)
        arguments = op.bind((), case)
        bindings = op.check_values(arguments)
        assert op.dtype(arguments) is dtype
        outputs = op.run_reference(arguments, dtype)
        for output, arg in zip(outputs, op.output_args(), strict=True):
            assert output.shape == infer(arg.spec, bindings)
            assert dtype_of(output) is (dtype if arg.dtype == "T" else DType.INT64)
        assert op.check_statics(op.statics_of(arguments))["dtype"] is dtype
    assert len(labels) == len(set(labels)) >= 5


@pytest.mark.parametrize(("op", "dtype"), EVERY)
def test_check_never_reads_data(op, dtype):
    for case in cases(op, dtype, seed=1):
        hidden = {k: Opaque(v) if isinstance(v, np.ndarray) else v for k, v in case.items()}
        op.check(op.bind((), hidden))


@pytest.mark.parametrize(("op", "dtype"), EVERY)
def test_reference_leaves_its_arguments_alone(op, dtype):
    for case in cases(op, dtype, seed=2):
        before = {k: v.tobytes() for k, v in case.items() if isinstance(v, np.ndarray)}
        op.run_reference(op.bind((), case), dtype)
        assert before == {k: v.tobytes() for k, v in case.items() if isinstance(v, np.ndarray)}


def test_cases_depend_on_the_seed_only():
    op = operation("linear")
    first, again, other = (next(iter(cases(op, DType.FP16, seed)))["x"] for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("op", OPERATIONS.values(), ids=lambda op: op.name)
def test_contract_is_written(op):
    assert op.meaning
    assert op.signature.startswith(f"{op.name}(")
    if op.accuracy is Accuracy.ACCUMULATED:
        assert op.magnitude is not None


def test_bind_refuses_like_a_call():
    op = operation("rms_norm")
    with pytest.raises(InvalidArgumentError, match=r"eps.*signature is rms_norm\(x\[\.\.\. d\]"):
        op.bind((1, 2), {})
    with pytest.raises(InvalidArgumentError, match="epsilon"):
        op.bind((1, 2, 3), {"epsilon": 3})
    assert list(op.bind((1,), {"eps": 3, "weight": 2})) == ["x", "weight", "eps"]


def good(name, dtype=DType.FP32):
    op = operation(name)
    case = next(iter(cases(op, dtype, seed=0)))
    return op, op.bind((), case)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rms_norm", {"x": 3.0}, "x must be an array of shape"),
        ("rms_norm", {"x": None}, "x must be an array"),
        ("rms_norm", {"weight": np.ones(1, np.float16)}, "weight is fp16 and x is fp32"),
        ("rms_norm", {"x": np.ones((1, 1), np.int32)}, "x is int32, wanted fp32 or fp16 or bf16"),
        ("rms_norm", {"eps": 0.0}, "eps is 0.0, wanted a positive finite number"),
        ("rms_norm", {"eps": "1e-6"}, "eps is '1e-6'"),
        ("rms_norm", {"eps": float("nan")}, "eps is nan"),
        ("rms_norm", {"eps": True}, "eps is True"),
        ("gelu", {"approximate": "erf"}, "wanted 'none' or 'tanh'"),
        ("silu_and_mul", {"x": np.ones((2, 3), np.float32)}, "3 is no multiple of 2"),
        ("embedding", {"ids": np.ones(2, np.float32)}, "ids is fp32, wanted int32 or int64"),
        ("rope", {"cos_sin": np.ones((4, 3), np.float32)}, "rotates 3 of 2 dimensions"),
        ("rope", {"cos_sin": np.ones((4, 4), np.float32)}, "rotates 4 of 2 dimensions"),
        ("rope", {"cos_sin": np.ones((4, 2), np.float16)}, "cos_sin is fp16, wanted fp32"),
        ("matmul", {"b": np.ones((2, 1, 1), np.float32)}, r"\.\.\. is \(2,\) here and \(\) in a"),
        ("attention", {"metadata": None}, "metadata must be an AttentionMetadata"),
        ("attention", {"window": 0}, "window is 0, wanted a positive integer, or None"),
        ("attention", {"softcap": -1.0}, "softcap is -1.0"),
        ("attention", {"causal": 1}, "causal is 1, wanted True or False"),
        ("attention", {"k": np.ones((2, 1, 8), np.float32)}, "k"),
    ],
)
def test_check_refuses(name, change, words):
    op, arguments = good(name)
    op.check(arguments)
    with pytest.raises(InvalidArgumentError, match=words):
        op.check({**arguments, **change})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("embedding", {"ids": np.array([37])}, "ids holds 37, the table has rows 0 to 36"),
        ("embedding", {"ids": np.array([-1])}, "ids holds -1"),
        ("rope", {"positions": np.array([4096])}, "positions holds 4096"),
        ("kv_write", {"slots": np.array([1])}, "slots holds 1, the cache has slots 0 to 0"),
        ("kv_write", {"slots": np.array([-2])}, "slots holds -2"),
        ("sample", {"uniform": np.array([1.0], np.float32)}, r"uniform\[0\] is 1,"),
        ("sample", {"temperature": np.array([-1.0], np.float32)}, "temperature"),
        ("sample", {"temperature": np.array([np.nan], np.float32)}, "temperature"),
        ("sample", {"top_p": np.array([0.0], np.float32)}, "top_p"),
        ("sample", {"top_k": np.array([-1])}, "top_k"),
        ("sample", {"logits": np.array([[np.nan]], np.float32)}, "row 0 of logits"),
        ("greedy_sample", {"logits": np.array([[-np.inf]], np.float32)}, "row 0 of logits"),
    ],
)
def test_check_values_refuses_what_check_cannot_see(name, change, words):
    op, arguments = good(name)
    op.check({**arguments, **change})
    with pytest.raises(InvalidArgumentError, match=words):
        op.check_values({**arguments, **change})


def test_duplicate_slots_are_refused():
    op = operation("kv_write")
    case = next(case for case in cases(op, DType.FP32, 0) if case.label == "skips")
    with pytest.raises(InvalidArgumentError, match="slot 7 is written 2 times"):
        op.check_values({**case, "slots": np.array([7, -1, 1, 7, -1, 3])})


def test_statics_have_known_names_and_good_values():
    op = operation("attention")
    assert op.check_statics({"dtype": "bfloat16", "window": None}) == {
        "dtype": DType.BF16,
        "window": None,
    }
    assert op.check_statics({"dtype": None}) == {}
    with pytest.raises(InvalidArgumentError, match="did you mean 'head_dim'"):
        op.check_statics({"head_dims": 64})
    with pytest.raises(InvalidArgumentError, match="mode is 'decode'"):
        op.check_statics({"mode": "decode"})


junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()),
    st.builds(lambda shape: SimpleNamespace(shape=shape), st.lists(st.integers(0, 5), max_size=4)),
    st.builds(
        lambda shape, dtype: SimpleNamespace(shape=tuple(shape), dtype=dtype),
        st.lists(st.integers(0, 5), max_size=4),
        st.sampled_from(["float32", "float16", "bfloat16", "int32", "int64", "int8", "?"]),
    ),
)  # fmt: skip


@given(name=st.sampled_from(sorted(OPERATIONS)), data=st.data())
def test_anything_is_accepted_or_refused_by_our_error(name, data):
    op, arguments = good(name)
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(arguments)), junk, min_size=1))
    with suppress(InvalidArgumentError):
        op.check({**arguments, **changed})
