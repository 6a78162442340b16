import logging
import threading
import timeit

import numpy as np
import pytest

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    ErrorCode,
    InvalidArgumentError,
    OperatorNotFoundError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.dispatch import KernelTable

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


def test_highest_priority_that_supports_is_chosen():
    table = make()
    table.register("matmul", answer("slow"), name="slow")
    table.register("matmul", answer("fast"), name="fast", priority=10, supports=only(DType.BF16))
    table.register("matmul", answer("late"), name="late")
    assert table.resolve("matmul", dtype="bf16")(1, 2) == "fast"
    assert table.resolve("matmul", dtype="fp16")(1, 2) == "slow"
    assert table.resolve("matmul")(1, 2) == "fast"


def test_a_shortcut_is_what_callers_get_and_the_guarded_kernel_what_it_falls_back_to():
    def fail(a, b):
        raise RuntimeError("planted")

    def shortcut(guarded):
        return lambda a, b: a + b if a > 0 else guarded(a, b)

    table = make()
    table.register("matmul", fail, name="fast", shortcut=shortcut)
    kernel = table.resolve("matmul")
    assert kernel(1, 2) == 3
    with pytest.raises(BackendError):
        kernel(-1, 2)


def test_resolutions_are_cached_until_something_is_registered():
    table, calls = make(), []

    def supports(**static):
        calls.append(static)
        return []

    table.register("matmul", answer("old"), name="old", supports=supports)
    first = table.resolve("matmul", dtype="bf16")
    assert table.resolve("matmul", dtype=DType.BF16) is first
    assert calls == [{"dtype": DType.BF16}]
    table.register("matmul", answer("new"), name="new", priority=1)
    assert table.resolve("matmul", dtype="bf16")(1, 2) == "new"


def test_statics_choose_and_are_checked():
    table, seen = make(), []

    def supports(**static):
        seen.append(static)
        return []

    def kernel(q, k, positions, cos_sin, *, style="neox"):
        return style

    table.register("rope", kernel, name="only", supports=supports)
    kernel = table.resolve("rope", dtype="fp16", style="gptj", head_dim=64)
    assert seen == [{"dtype": DType.FP16, "style": "gptj", "head_dim": 64}]
    assert kernel(1, 2, 3, 4) == "neox"  # a static that chose is given again at the call
    with pytest.raises(InvalidArgumentError, match="did you mean 'style'"):
        table.resolve("rope", stile="gptj")
    with pytest.raises(InvalidArgumentError, match="style is 'llama'"):
        table.resolve("rope", style="llama")
    with pytest.raises(InvalidArgumentError, match="is not a data type"):
        table.resolve("rope", dtype="float7")


def test_unknown_operations_list_what_there_is():
    table = make()
    table.register_custom("my_kernel", print)
    with pytest.raises(OperatorNotFoundError, match="did you mean 'my_kernel'"):
        table.resolve("my_kernl")
    for method in (table.resolve, table.supports, table.explain):
        for name in ("nothing", None, ["matmul"]):
            with pytest.raises(OperatorNotFoundError):
                method(name)


def test_kernels_take_the_signature_of_their_operation():
    table = make()

    def kernel(x, weight, eps):
        return x, weight, eps

    table.register("rms_norm", kernel, name="k")
    resolved = table.resolve("rmsnorm")
    assert resolved(1, 2, 3) == resolved(eps=3, weight=2, x=1) == (1, 2, 3)
    with pytest.raises(TypeError, match=r"rms_norm\(\) missing 1 .*'eps'"):
        resolved(1, 2)


@pytest.mark.parametrize(
    "bad",
    [lambda x: x, lambda x, weight: x, lambda x, weight, eps, more: x],
    ids=["one", "two", "four"],
)
def test_a_kernel_that_cannot_be_called_is_refused_at_once(bad):
    with pytest.raises(InvalidArgumentError, match="does not fit rms_norm") as caught:
        make().register("rms_norm", bad, name="bad")
    assert caught.value.code is ErrorCode.OPERATOR_REGISTRATION_FAILED


def test_registration_refuses():
    table = make()
    table.register("matmul", answer(1), name="one")
    with pytest.raises(InvalidArgumentError, match="already has a 'one'"):
        table.register("matmul", answer(2), name="one")
    with pytest.raises(InvalidArgumentError, match="must be callable"):
        table.register("matmul", None, name="none")
    with pytest.raises(OperatorNotFoundError):
        table.register("matmult", answer(1), name="one")
    assert table.resolve("matmul")(1, 2) == 1


def raising(error):
    def kernel(a, b):
        raise error

    return kernel


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("boom"), UnavailableError, r"matmul \(k\) failed: RuntimeError: boom"),
        (IndexError("index 9"), InvalidArgumentError, "outside of its array: index 9"),
        (MemoryError("no"), OutOfMemoryError, "MemoryError: no"),
        (RuntimeError("CUDA out of memory. Tried"), OutOfMemoryError, "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("x"), OutOfMemoryError, "x"),
        (TypeError("odd"), UnavailableError, "TypeError: odd"),
    ],
)
def test_failures_become_our_errors(error, kind, words):
    table = make()
    table.register("matmul", raising(error), name="k")
    with pytest.raises(kind, match=words) as caught:
        table.resolve("matmul")(ONES, ONES)
    assert caught.value.__cause__ is error


def test_bad_arguments_are_explained_instead_of_the_failure():
    table = make()
    table.register("matmul", raising(RuntimeError("shapes cannot be multiplied")), name="k")
    with pytest.raises(InvalidArgumentError, match="k is 3 here and 2 in a"):
        table.resolve("matmul")(ONES, np.ones((3, 2), np.float32))
    table.register_custom("matmul", raising(RuntimeError("boom")))
    with pytest.raises(InvalidArgumentError, match="k is 3 here and 2 in a"):
        table.resolve("matmul")(ONES, b=np.ones((3, 2), np.float32))


@pytest.mark.parametrize("error", [CapabilityError("x", "y", "z"), KeyboardInterrupt()])
def test_our_errors_and_interrupts_pass_unchanged(error):
    table = make()
    table.register("matmul", raising(error), name="k")
    with pytest.raises(type(error)) as caught:
        table.resolve("matmul")(ONES, ONES)
    assert caught.value is error


def test_the_guard_costs_about_one_python_call():
    def kernel(a, b):
        return a

    def forward(a, b):
        return kernel(a, b)

    table = make()
    table.register("matmul", kernel, name="k")
    guarded = table.resolve("matmul")
    best = dict.fromkeys((kernel, forward, guarded), float("inf"))
    for _ in range(60):  # interleaved, so that a busy machine is busy for all
        for function in best:
            seconds = timeit.timeit("f(1, 2)", globals={"f": function}, number=5_000)
            best[function] = min(best[function], seconds)
    assert best[guarded] - best[kernel] < 3 * (best[forward] - best[kernel])


def test_custom_kernels_of_other_names_are_theirs():
    table = make()
    table.register_custom("my_kernel", answer)
    assert table.resolve("my_kernel") is answer
    assert table.supports("my_kernel") == []
    assert table.explain("my_kernel").to_dict()["chosen"] == "custom:my_kernel"
    table.register_custom("my_kernel", print)
    assert table.resolve("my_kernel") is print


def test_custom_kernels_for_operations_take_precedence_and_replace(caplog):
    table = make()
    table.register("rms_norm", lambda x, weight, eps: "own", name="own", priority=500)

    def mine(x):
        return "mine"

    table.register_custom("rmsnorm", mine)
    assert table.resolve("rms_norm")(1) == "mine"
    names = [item.name for item in table.explain("rms_norm").candidates]
    assert names == [f"custom:{mine.__qualname__}", "own"]
    with caplog.at_level(logging.INFO):
        table.register_custom("rms_norm", lambda *_: "other")
    assert "custom kernel for rms_norm was replaced" in caplog.text
    assert table.resolve("rms_norm")(1) == "other"
    assert len(table.explain("rms_norm").candidates) == 2


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_custom_names_are_strings(name):
    with pytest.raises(InvalidArgumentError, match="name"):
        make().register_custom(name, print)
    with pytest.raises(InvalidArgumentError, match="callable"):
        make().register_custom("good", 3)


def test_threads_register_and_resolve_together():
    table, errors = make(), []
    table.register("matmul", answer(0), name="0")

    def work(number):
        try:
            for i in range(50):
                table.register("matmul", answer(1), name=f"{number}-{i}", priority=1)
                assert table.resolve("matmul", dtype="bf16")(1, 2) == 1
        except BackendError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(table.explain("matmul").candidates) == 201


def test_every_operation_has_a_guard():
    table = make()
    for op in OPERATIONS.values():
        table.register(op.name, op.reference, name="reference itself")
        assert table.resolve(op.name).__name__ == op.name
    assert set(table.names()) == set(OPERATIONS)
