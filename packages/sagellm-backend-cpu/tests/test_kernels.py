"""Kernels: resolved for every operation, near to the reference, and deaf to no misuse."""

import logging

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider, DType
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.operations import cases, examine_operations
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    InvalidArgumentError,
    OperatorNotFoundError,
)
from sagellm_backend.ops import OPERATIONS

DTYPES = ("fp32", "fp16", "bf16")
NAMES = tuple(OPERATIONS)

# What no argument of any operation may be.
JUNK = ("x", b"x", [1.0], (2,), {}, object(), 1j)
# What statics may not be; a value that is good for an operation is not counted as misuse.
BAD_STATICS = (float("nan"), float("inf"), -1.0, 0.0, 0, -1, 2.5, True, None, "junk")
OTHER_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
)


@pytest.fixture(scope="module")
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def native(backend, case):
    """The arguments of a case as the backend's arrays."""
    return {name: _native(backend, value) for name, value in case.items()}


def _native(backend, value):
    if isinstance(value, np.ndarray):
        return backend.from_numpy(value)
    if isinstance(value, AttentionMetadata):
        return backend.attention_metadata(
            value.query_lens, value.kv_lens, value.block_table, value.block_size
        )
    return value


def some_cases(backend, name):
    """Two small cases of an operation with all its arguments, paged and ragged for attention."""
    operation = OPERATIONS[name]
    found = {case.label: case for case in cases(operation, DType.FP32, 0)}
    wanted = ["3d", "bias-3d", "batch", "odd", "gqa-neox", "partial-gptj", "mixed", "odd-none"]
    wanted += ["ragged-gqa2", "decode-gqa2", "prefill-chunk"]
    labels = [label for label in wanted if label in found]
    assert labels, f"none of {list(found)} is chosen"
    for label in labels[:3]:
        yield label, operation.bind((), native(backend, found[label]))


def misuses(operation, arguments):
    """(what was done, changed arguments), one argument spoilt in each."""
    for name, value in arguments.items():
        for junk in JUNK:
            yield f"{name} is {junk!r:.20}", {**arguments, name: junk}
        if isinstance(value, torch.Tensor):
            yield f"{name} is None", {**arguments, name: None}
            for what, spoilt in spoilt_arrays(value):
                yield f"{name} {what}", {**arguments, name: spoilt}
        else:
            for bad in BAD_STATICS:
                yield f"{name} is {str(bad)[:9]}", {**arguments, name: bad}


def spoilt_arrays(value):
    yield "has a dimension more", value.unsqueeze(0)
    yield "has a dimension more behind", value.unsqueeze(-1)
    for axis in range(value.dim()):
        yield f"lacks dimension {axis}", value.select(axis, 0)
        yield f"has size {axis} 0", value.narrow(axis, 0, 0)
        yield f"has size {axis} 1", value.narrow(axis, 0, 1)
        yield f"has size {axis} less 1", value.narrow(axis, 0, value.shape[axis] - 1)
        yield f"has size {axis} doubled", torch.cat([value, value], axis)
        yield f"has size {axis} and 1", torch.cat([value, value.narrow(axis, 0, 1)], axis)
    for dtype in OTHER_DTYPES:
        if dtype is not value.dtype:
            yield f"is {dtype}", value.to(dtype)


def refusal(operation, arguments):
    """Whether the operation table refuses these arguments."""
    try:
        operation.check(arguments)
    except InvalidArgumentError:
        return True
    return False


def snapshot(arguments):
    return {
        name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)
    }


def unchanged(arguments, before):
    return all(
        torch.equal(arguments[name].view(-1).view(torch.uint8), copy.view(-1).view(torch.uint8))
        for name, copy in before.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_misuse_of_an_operation_is_refused_and_changes_nothing(backend, name):
    operation, faults, count = OPERATIONS[name], [], 0
    kernel = backend.get_kernel(name)
    for label, arguments in some_cases(backend, name):
        assert not refusal(operation, arguments), label
        before = snapshot(arguments)
        for what, spoilt in misuses(operation, arguments):
            if not refusal(operation, spoilt):
                continue
            count += 1
            try:
                kernel(**spoilt)
            except InvalidArgumentError:
                pass
            except Exception as error:  # noqa: BLE001 - every other type is the finding
                faults.append(f"{label}: {what}: {type(error).__name__}: {error}")
            else:
                faults.append(f"{label}: {what}: accepted")
            if not unchanged(arguments, before):
                faults.append(f"{label}: {what}: arguments were changed")
                before = snapshot(arguments)
    assert count > 20
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_comes_within_its_bounds(backend, dtype, seed):
    findings = examine_operations(backend, [dtype], seed=seed)
    assert {finding.operation for finding in findings} == set(NAMES)
    assert [finding for finding in findings if not finding.passed or finding.refused] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_resolves_alone_and_in_every_dtype(backend, name):
    for dtype in (None, *DTYPES, *map(DType, DTYPES), torch.bfloat16):
        kernel = backend.get_kernel(name, dtype=dtype)
        assert kernel is backend.get_kernel(name, dtype=dtype)
        assert backend.supports(name, dtype=dtype) == []


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_that_are_not_declared_are_refused_when_resolved(backend, name):
    for dtype in set(DType) - set(map(DType, DTYPES)):
        assert backend.supports(name, dtype=dtype) != []
        assert backend.explain(name, dtype=dtype).chosen is None
        with pytest.raises(CapabilityError, match=f"{dtype.value} is not computed in") as caught:
            backend.get_kernel(name, dtype=dtype)
        assert caught.value.feature == name


def test_aliases_find_the_same_kernel(backend):
    for operation in OPERATIONS.values():
        for alias in operation.aliases:
            assert backend.get_kernel(alias) is backend.get_kernel(operation.name)


@pytest.mark.parametrize("method", ["get_kernel", "supports", "explain"])
def test_names_and_statics_that_nobody_knows_are_refused(backend, method):
    call = getattr(backend, method)
    with pytest.raises(OperatorNotFoundError, match="did you mean 'rms_norm'"):
        call("rms_nrom")
    with pytest.raises(InvalidArgumentError, match="head_dims"):
        call("attention", head_dims=64)
    for name in (None, 3, ["linear"], {}, object()):
        with pytest.raises(InvalidArgumentError, match="name must be a str"):
            call(name)


def test_explain_names_what_runs_and_what_stands_behind_it(backend):
    told = backend.explain("rms_norm", dtype="bf16")
    assert told.chosen == "cpu"
    assert [(one.name, one.supported) for one in told.candidates] == [
        ("cpu", True),
        ("torch", True),
    ]
    assert backend.explain("gelu").chosen == "torch"
    assert not told.fallback


def test_arguments_are_not_taken_for_results(backend):
    x = backend.from_numpy(np.ones((2, 8), np.float32))
    weight = backend.from_numpy(np.ones(8, np.float32))
    for name, arguments in {
        "rms_norm": (x, weight, 1e-6),
        "add_rms_norm": (x, x, weight, 1e-6),
        "gelu": (x,),
        "softmax": (x,),
        "silu_and_mul": (x,),
    }.items():
        result = backend.get_kernel(name)(*arguments)
        for output in result if isinstance(result, tuple) else (result,):
            assert output.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_strided_arguments_give_what_contiguous_ones_give(backend):
    rng = np.random.default_rng(0)
    wide = backend.from_numpy(rng.standard_normal((6, 32), np.float32))
    weight = backend.from_numpy(rng.standard_normal((16,), np.float32))
    strided = wide[::2, ::2]
    kernel = backend.get_kernel("rms_norm")
    assert torch.equal(kernel(strided, weight, 1e-6), kernel(strided.contiguous(), weight, 1e-6))


@pytest.mark.parametrize("name", ["embedding", "rope", "kv_write"])
@pytest.mark.parametrize("outside", [-7, 1 << 20])
def test_ids_outside_of_their_array_are_refused_and_change_nothing(backend, name, outside):
    index = {"embedding": "ids", "rope": "positions", "kv_write": "slots"}[name]
    for _, arguments in some_cases(backend, name):
        before = snapshot(arguments)
        spoilt = arguments[index].clone()
        spoilt.view(-1)[-1] = outside
        with pytest.raises(InvalidArgumentError, match=name):
            backend.get_kernel(name)(**{**arguments, index: spoilt})
        assert unchanged(arguments, before)


class TestFallback:
    """A provider without a kernel for fp8 norms, under each policy."""

    @staticmethod
    def arguments(backend):
        x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(3, 8)
        return backend.from_numpy(x), backend.from_numpy(np.ones(8, np.float32)), 1e-6

    def test_strict_refuses_with_the_reason_of_every_kernel(self):
        with CPUBackendProvider({"fallback": "strict"}) as backend:
            with pytest.raises(CapabilityError, match=r"cpu: dtype fp8.*torch: dtype fp8"):
                backend.get_kernel("rms_norm", dtype="fp8")
            assert not backend.explain("rms_norm", dtype="fp8").fallback

    def test_warn_computes_by_the_reference_and_says_so_once(self, caplog):
        with CPUBackendProvider({"fallback": "warn"}) as backend:
            self.check_fallback(backend, caplog, lines=1)

    def test_allow_computes_by_the_reference_in_silence(self, caplog):
        with CPUBackendProvider({"fallback": {"rms_norm": "allow"}}) as backend:
            self.check_fallback(backend, caplog, lines=0)
            with pytest.raises(CapabilityError):
                backend.get_kernel("layer_norm", dtype="fp8")

    def test_reference_only_computes_everything_by_the_reference(self):
        with CPUBackendProvider({"reference_only": True}) as backend:
            findings = examine_operations(backend, ["fp32"], seed=3)
            assert [finding for finding in findings if not finding.passed] == []
            counts = backend.kernels.fallback_counts()
            assert set(counts) == set(NAMES)
            told = backend.explain("linear", dtype="fp32")
            assert (told.chosen, told.fallback) == ("reference", True)

    def test_the_reference_refuses_what_no_kernel_can_see(self):
        with CPUBackendProvider({"reference_only": True}) as backend:
            _, arguments = next(iter(some_cases(backend, "sample")))
            for name, bad in (("top_p", 1.5), ("uniform", 1.0), ("temperature", -1.0)):
                spoilt = torch.full_like(arguments[name], bad)
                with pytest.raises(InvalidArgumentError, match=name):
                    backend.get_kernel("sample")(**{**arguments, name: spoilt})

    def check_fallback(self, backend, caplog, lines):
        caplog.set_level(logging.WARNING)
        assert backend.explain("rms_norm", dtype="fp8").fallback
        for _ in range(3):
            kernel = backend.get_kernel("rms_norm", dtype="fp8")
        x, weight, eps = self.arguments(backend)
        got = backend.to_numpy(kernel(x, weight, eps))
        wanted = backend.to_numpy(backend.get_kernel("rms_norm")(x, weight, eps))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        assert backend.kernels.fallback_counts() == {"rms_norm": 1}
        said = [record for record in caplog.records if "reference" in record.getMessage()]
        assert len(said) == lines


class TestCustomKernels:
    def test_a_registered_kernel_takes_precedence_and_the_last_one_wins(self):
        with CPUBackendProvider() as backend:
            backend.register_kernel("softmax", lambda x: "first")
            backend.register_kernel("softmax", lambda x: "second")
            assert backend.get_kernel("softmax")(None) == "second"
            assert CPUBackendProvider().explain("softmax").chosen == "torch"

    def test_a_name_outside_of_the_table_is_found_and_called_as_it_is(self):
        with CPUBackendProvider() as backend:
            backend.register_kernel("my_fused_op", max)
            assert backend.get_kernel("my_fused_op") is max
            assert backend.capability().operations.keys() == set(NAMES)

    @pytest.mark.parametrize("name", [None, "", "  ", 3, ["x"], object()])
    def test_names_that_are_none_are_refused(self, name):
        with CPUBackendProvider() as backend, pytest.raises(BackendError):
            backend.register_kernel(name, max)

    @pytest.mark.parametrize("impl", [None, 3, "max", []])
    def test_what_cannot_be_called_is_refused(self, impl):
        with CPUBackendProvider() as backend:
            with pytest.raises(InvalidArgumentError):
                backend.register_kernel("op", impl)
            with pytest.raises(OperatorNotFoundError):
                backend.get_kernel("op")
