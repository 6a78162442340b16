"""Right kernels pass and planted faults are caught, in every dtype where the fault shows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.accuracy import ratio
from sagellm_backend.conformance.operations import cases, examine_operations
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops import OPERATIONS, operation
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.ops.dispatch import KernelTable


class HostProvider:
    """NumPy with the kernels of a test; every other operation is the reference."""

    name = "host"

    def __init__(self, declared=FLOATING, **kernels):
        self.declared = declared
        self.table = KernelTable(self.name)
        for op in OPERATIONS.values():
            kernel = kernels.get(op.name) or reference_kernel(op)
            self.table.register(op.name, kernel, name="numpy", supports=self._supports)
        self.get_kernel, self.explain = self.table.resolve, self.table.explain
        self.attention_metadata = AttentionMetadata.build
        self.from_numpy = self.to_numpy = np.array

    def _supports(self, *, dtype=None, **_):
        return [] if dtype in (None, *self.declared) else ["not declared"]

    def capability(self):
        operations = dict.fromkeys(OPERATIONS, self.declared)
        return SimpleNamespace(operations=operations, flush_subnormals=())


def reference_kernel(op):
    def kernel(*args, **kwargs):
        arguments = op.bind(args, kwargs)
        results = op.run_reference(arguments, op.dtype(arguments))
        for name, values in zip(op.mutates, results[len(op.returns) :], strict=True):
            arguments[name][...] = values
        outputs = results[: len(op.returns)]
        return outputs[0] if len(outputs) == 1 else outputs or None

    return kernel


def failed(provider, dtypes, **choice):
    return [f for f in examine_operations(provider, dtypes, **choice) if not f.passed]


def failures(operation_name, kernel, dtypes):
    provider = HostProvider(**{operation_name: kernel})
    return {(f.dtype, f.case) for f in failed(provider, dtypes, operations=[operation_name])}


def test_the_reference_passes_and_nothing_is_left_out():
    findings = examine_operations(HostProvider(), FLOATING, seed=3)
    assert [f for f in findings if not f.passed or f.refused] == []
    assert {(f.operation, f.dtype) for f in findings} == {
        (name, dtype.value) for name in OPERATIONS for dtype in FLOATING
    }
    assert all(f.r_max <= f.bound for f in findings)
    json.dumps([f.to_dict() for f in findings], allow_nan=False)


def sequential_linear(accumulator):
    def linear(x, weight, bias=None):
        total = np.zeros((*x.shape[:-1], len(weight)), accumulator)
        for i in range(x.shape[-1]):
            product = x[..., i, None].astype(np.float32) * weight[:, i].astype(np.float32)
            total = (total + product).astype(accumulator)
        return (total if bias is None else total + bias).astype(x.dtype)

    return linear


def test_sequential_fp32_accumulation_passes():
    assert failures("linear", sequential_linear(np.float32), FLOATING) == set()


def test_accumulation_in_the_dtype_is_caught():
    for dtype in (DType.FP16, DType.BF16):
        caught = failures("linear", sequential_linear(dtype.numpy), [dtype])
        assert {(dtype.value, "deep"), (dtype.value, "odd")} <= caught


def test_tf32_that_claims_fp32_is_caught():
    def tf32(x):
        return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)

    def matmul(a, b):
        return tf32(np.ascontiguousarray(a)) @ tf32(np.ascontiguousarray(b))

    assert {("fp32", "deep"), ("fp32", "odd")} <= failures("matmul", matmul, [DType.FP32])


def test_rms_norm_that_squares_in_fp16_is_caught():
    def rms_norm(x, weight, eps):
        with np.errstate(over="ignore"):
            square = (x * x).mean(axis=-1, keepdims=True, dtype=np.float32)
        return (x / np.sqrt(square + eps) * weight).astype(x.dtype)

    assert ("fp16", "large") in failures("rms_norm", rms_norm, [DType.FP16])


def test_layer_norm_by_the_difference_of_moments_is_caught():
    def layer_norm(x, weight, bias, eps):
        wide = x.astype(np.float32)
        mean = wide.mean(axis=-1, keepdims=True)
        variance = (wide * wide).mean(axis=-1, keepdims=True) - mean * mean
        return ((wide - mean) / np.sqrt(variance + np.float32(eps)) * weight + bias).astype(x.dtype)

    assert failures("layer_norm", layer_norm, [DType.FP32]) == {("fp32", "shifted")}


def test_a_residual_without_the_sum_is_caught():
    reference = reference_kernel(operation("add_rms_norm"))

    def stale(x, residual, weight, eps):
        return reference(x, residual, weight, eps)[0], residual.copy()

    assert ("bf16", "3d") in failures("add_rms_norm", stale, [DType.BF16])


def test_swapped_gate_is_caught():
    reference = reference_kernel(operation("silu_and_mul"))

    def swapped(x):
        return reference(np.concatenate(np.split(x, 2, axis=-1)[::-1], axis=-1))

    assert ("bf16", "odd") in failures("silu_and_mul", swapped, [DType.BF16])


def test_the_other_rope_style_is_caught():
    reference = reference_kernel(operation("rope"))

    def neox_only(q, k, positions, cos_sin, *, style="neox"):
        return reference(q, k, positions, cos_sin, style="neox")

    caught = failures("rope", neox_only, [DType.FP16])
    assert ("fp16", "gqa-gptj") in caught
    assert ("fp16", "gqa-neox") not in caught


def faulty_attention(fault):
    reference = reference_kernel(operation("attention"))

    def attention(q, k, v, metadata, *, scale, window=None, **options):
        options |= {"scale": scale, "window": window}
        if fault == "scale":
            options["scale"] = (scale**-2 + 1) ** -0.5
        if fault == "window" and window:
            options["window"] = window + 1
        if fault == "last key" and metadata.mode == "paged_decode":
            lens = np.maximum(metadata.kv_lens - 1, 1)
            metadata = metadata.build(
                metadata.query_lens, lens, metadata.block_table, metadata.block_size
            )
        if fault == "head order" and k.shape[-2] > 1:
            k = k[..., ::-1, :]
        if fault == "poison":
            k, v = (np.where(np.isnan(x.astype(np.float32)), np.ones_like(x), x) for x in (k, v))
            out = reference(q, k, v, metadata, **options)
            return out * np.nan if metadata.mode == "paged_decode" else out
        return reference(q, k, v, metadata, **options)

    return attention


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        ("scale", "prefill-edges"),
        ("scale", "decode-gqa8"),
        ("window", "ragged-window"),
        ("window", "decode-window"),
        ("last key", "decode-needle"),
        ("last key", "decode-gqa8"),
        ("head order", "ragged-needle-own"),
        ("poison", "decode-edges"),
    ],
)
@pytest.mark.parametrize("dtype", FLOATING, ids=lambda dtype: dtype.value)
def test_attention_faults_are_caught(fault, case, dtype):
    assert (dtype.value, case) in failures("attention", faulty_attention(fault), [dtype])


def test_kv_write_that_writes_skipped_tokens_is_caught():
    reference = reference_kernel(operation("kv_write"))

    def kernel(key, value, key_cache, value_cache, slots):
        reference(key, value, key_cache, value_cache, np.maximum(slots, 0))

    assert ("fp32", "skips-all") in failures("kv_write", kernel, [DType.FP32])


def test_highest_id_of_equals_is_caught():
    def greedy(logits):
        return logits.shape[1] - 1 - np.argmax(logits[:, ::-1].astype(np.float32), axis=1)

    assert ("fp32", "ties") in failures("greedy_sample", greedy, [DType.FP32])


@pytest.mark.parametrize(
    ("change", "case"),
    [
        (lambda s: {**s, "temperature": np.ones_like(s["temperature"])}, "top-k"),
        (lambda s: {**s, "top_k": np.zeros_like(s["top_k"])}, "top-k"),
        (lambda s: {**s, "top_p": np.ones_like(s["top_p"])}, "top-p"),
        (lambda s: {**s, "uniform": 1 - s["uniform"]}, "plain"),
    ],
    ids=["temperature", "top-k", "top-p", "order"],
)
def test_sampling_faults_are_caught(change, case):
    reference = reference_kernel(operation("sample"))

    def sample(logits, uniform, temperature, top_k, top_p):
        settings = {"uniform": uniform, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        return reference(logits, **change(settings))

    assert ("fp32", case) in failures("sample", sample, [DType.FP32])


def test_changed_arguments_are_caught():
    def in_place(x, weight, eps):
        x[...] = reference_kernel(operation("rms_norm"))(x, weight, eps)
        return x.copy()

    found = failed(HostProvider(rms_norm=in_place), ["fp32"], operations=["rms_norm"])
    assert {f.detail for f in found} == {"argument x was changed"}


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (lambda x: None, "is no array but NoneType"),
        (lambda x: x.astype(np.float64), "data type"),
        (lambda x: x.astype(np.int32), "is int32(1, 1), wanted fp32(1, 1)"),
        (lambda x: x[..., None], "wanted fp32(1, 1)"),
        (lambda x: x * np.float32(np.nan), "nan"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["none", "float64", "int32", "shape", "nan", "raises"],
)
def test_results_of_the_wrong_form_are_findings(kernel, words):
    provider = HostProvider(softmax=kernel)
    provider.to_numpy = lambda array: array
    found = failed(provider, ["fp32"], operations=["softmax"])
    assert any(words in f.detail for f in found)


def test_what_is_not_declared_must_be_refused():
    findings = examine_operations(HostProvider(declared=(DType.FP32,)), FLOATING)
    assert all(f.passed for f in findings)
    assert sum(f.case == "undeclared" and f.refused for f in findings) == 2 * len(OPERATIONS)
    liar = HostProvider()
    liar.declared = (DType.FP32,)
    liar.get_kernel = lambda name, **_: liar.table.resolve(name)
    found = failed(liar, ["fp16"])
    assert len(found) == len(OPERATIONS)
    assert found[0].detail == "not declared, and resolved nevertheless"


def test_a_claim_that_refuses_every_case_is_caught():
    provider = HostProvider(declared=())
    provider.capability = HostProvider().capability
    found = failed(provider, ["fp32"])
    assert [f.case for f in found] == ["declared"] * len(OPERATIONS)


def test_ratio_measures_in_units_of_rounding():
    op = operation("rms_norm")
    case = next(case for case in cases(op, DType.FP32, 0) if case.label == "wide")
    arguments = op.bind((), case)
    good = op.run_reference(arguments, DType.FP32)[0]
    assert ratio(op, arguments, good, DType.FP32).r_max < 0.51
    found = ratio(op, arguments, good * np.float32(1 + 2**-20), DType.FP32)
    assert 7.5 < found.r_max < 9
    assert not found.passed
    with pytest.raises(InvalidArgumentError, match="1 results to judge, 2 were given"):
        ratio(op, arguments, [good, good], DType.FP32)


def test_rounded_results_are_measured_in_last_places():
    op = operation("add_rms_norm")
    arguments = op.bind((), next(iter(cases(op, DType.BF16, 0))))
    y, total = op.run_reference(arguments, DType.BF16)
    assert ratio(op, arguments, [y, total], DType.BF16).passed
    off = (total.view(np.uint16) + 2).view(total.dtype)
    found = ratio(op, arguments, [y, off], DType.BF16)
    assert (found.passed, round(found.r_max)) == (False, 2)
    assert found.detail.startswith("output 1")
