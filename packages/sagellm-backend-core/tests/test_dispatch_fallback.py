"""What happens when no implementation supports a call, and what explains it."""

import numpy as np
import pytest

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, OperatorNotFoundError
from sagellm_backend.ops import operation
from sagellm_backend.ops.dispatch import KernelTable, Policy

ONES = np.ones((2, 2), np.float32)


def copy_back(array, values):
    array[...] = values


def make(**options):
    hooks = {"to_numpy": np.array, "from_numpy": np.array, "write_back": copy_back}
    return KernelTable("fake", **{**hooks, **options})


def answer(value):
    return lambda a, b: value


def only(*dtypes):
    return lambda *, dtype=None, **_: [] if dtype in (None, *dtypes) else [f"no {dtype.value}"]


def test_strict_refuses_with_every_reason():
    table = make()
    with pytest.raises(CapabilityError, match=r"'matmul'.*'fake'.*no implementation of matmul"):
        table.resolve("matmul")
    table.register("matmul", answer(1), name="one", supports=only(DType.FP16))
    table.register("matmul", answer(2), name="two", supports=only(DType.BF16))
    with pytest.raises(CapabilityError, match=r"one: no fp32; two: no fp32"):
        table.resolve("matmul", dtype="fp32")
    assert table.supports("matmul", dtype="fp32") == ["one: no fp32", "two: no fp32"]
    assert table.supports("matmul", dtype="bf16") == []


def test_warn_computes_on_the_host_logs_once_and_counts(caplog):
    table = make(policy="warn")
    for _ in range(2):
        kernel = table.resolve("matmul", dtype="fp32")
        np.testing.assert_array_equal(kernel(ONES, b=ONES), 2 * ONES)
    table.resolve("matmul", dtype="fp16")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fake: matmul is computed by the reference" in caplog.text
    assert table.fallback_counts() == {"matmul": 2}


def test_allow_is_silent_and_counts(caplog):
    table = make(policy=Policy.ALLOW)
    table.resolve("matmul")(ONES, ONES)
    assert not caplog.records
    assert table.fallback_counts() == {"matmul": 1}


def test_policies_by_operation():
    table = make(policy={"*": "allow", "linear": "strict"})
    table.resolve("matmul")
    with pytest.raises(CapabilityError):
        table.resolve("linear")
    table = make(policy={"rmsnorm": "allow"})
    table.resolve("rms_norm")
    with pytest.raises(CapabilityError):
        table.resolve("matmul")
    with pytest.raises(InvalidArgumentError, match="'maybe' is no fallback policy"):
        make(policy="maybe")
    with pytest.raises(OperatorNotFoundError):
        make(policy={"matmult": "warn"})


def test_fallback_needs_hooks():
    with pytest.raises(CapabilityError, match="no hooks"):
        KernelTable("fake", policy="allow").resolve("matmul")
    with pytest.raises(CapabilityError, match="no hooks"):
        KernelTable("fake", reference_only=True)


def test_reference_only_ignores_what_is_registered():
    table = make(reference_only=True)
    table.register("matmul", answer("wrong"), name="k", priority=99)
    np.testing.assert_array_equal(table.resolve("matmul")(ONES, ONES), 2 * ONES)
    assert table.explain("matmul").chosen == "reference"


def test_fallback_writes_mutated_arguments_back():
    table = make(reference_only=True)
    caches = np.zeros((2, 1, 2, 1, 3), np.float32)
    new = np.ones((1, 1, 3), np.float32)
    result = table.resolve("kv_write")(new, 2 * new, *caches, np.array([1]))
    assert result is None
    assert caches[:, 0, :, 0, 0].tolist() == [[0, 1], [0, 2]]


def test_fallback_checks_the_data_it_can_see():
    table = make(reference_only=True)
    with pytest.raises(InvalidArgumentError, match="ids holds 5"):
        table.resolve("embedding")(np.array([5]), ONES)


def test_explanations_are_plain_data():
    table = make(policy="warn")
    table.register("matmul", answer(1), name="one", supports=only(DType.FP16))
    found = table.explain("matmul", dtype="fp32").to_dict()
    assert found == {
        "operation": "matmul",
        "signature": operation("matmul").signature,
        "meaning": operation("matmul").meaning,
        "static": {"dtype": "fp32"},
        "chosen": "reference",
        "candidates": [{"name": "one", "priority": 0, "supported": False, "reasons": ["no fp32"]}],
        "policy": "warn",
        "fallback": True,
    }
    assert table.explain("matmul", dtype="fp16").chosen == "one"
    assert not table.explain("matmul", dtype="fp16").fallback
    strict = make().explain("matmul")
    assert (strict.chosen, strict.fallback) == (None, False)
    assert table.fallback_counts() == {}
