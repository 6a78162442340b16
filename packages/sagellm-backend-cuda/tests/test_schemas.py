"""L0: every call that the provider makes on CUDA, bound to torch's own schemas.

Tensors are torch's fakes of device ``cuda``: every operator is dispatched, its schema binds the
arguments, and its rules for shapes, dtypes and devices apply; nothing is computed. What would wait
for the device fails here, since a fake has no values.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys

import numpy as np
import pytest
import torch
from fake_cuda.tensors import module, wide
from torch._subclasses.fake_tensor import FakeTensorMode

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cuda import attention as cuda_attention
from sagellm_backend.cuda import startup
from sagellm_backend.cuda.provider import CUDAProvider
from sagellm_backend.dtypes import DType
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.torch_support import attention as plain_attention
from sagellm_backend.torch_support import device_kernels, kernels, sampling, step
from sagellm_backend.torch_support.arrays import TORCH_DTYPES

pytestmark = pytest.mark.usefixtures("guard", "pageable")

DTYPES = (DType.FP32, DType.FP16, DType.BF16)

MODULES = (kernels, device_kernels, plain_attention, sampling, step, cuda_attention)

# Of the modules above, what does not run on CUDA, and why.
ELSEWHERE = {
    (kernels, "kv_write"): "device_kernels has its own",
    (kernels, "_write_slots"): "belongs to that kv_write",
    (kernels, "register"): "calls no operator",
    (step, "misfit"): "compares on the host",
    (step, "overwrite"): "test_graphs_update_their_step",
    (cuda_attention, "_find"): "runs at import",
    (cuda_attention, "shortfalls"): "calls no operator",
    (cuda_attention, "make"): "calls no operator",
}


def fake(value):
    """A host argument as the provider's: an array as a fake of device cuda."""
    if isinstance(value, AttentionMetadata):
        value.native.clear()
        step.prepare(value, torch.device("cuda:0"))
        return value
    if not isinstance(value, np.ndarray):
        return value
    return torch.empty(value.shape, dtype=TORCH_DTYPES[DType.parse(value.dtype)], device="cuda:0")


def paged_steps():
    """Steps whose blocks flash attention takes: (query_lens, kv_lens, table)."""
    yield [1, 1], [300, 7], [[0, 1], [2, -1]]
    yield [3, 2], [300, 7], [[0, 1], [2, -1]]


def calls(provider, dtype):
    """(operation, implementation, arguments, results) of everything that is registered."""
    for name, operation in OPERATIONS.items():
        for case in operation.inputs(np.random.default_rng(0), dtype):
            arguments = operation.bind((), case)
            results = operation.run_reference(arguments, dtype)
            statics = operation.statics_of(arguments)
            for item in provider.kernels._implementations[name]:
                if not item.reasons({**statics, "dtype": dtype}):
                    yield operation, item, arguments, results


@contextlib.contextmanager
def traced(lines):
    """Note every line of the kernels' modules that runs."""
    files = {inspect.getsourcefile(one): one for one in MODULES}

    def local(frame, event, _):
        if event == "line":
            lines.add((files[frame.f_code.co_filename], frame.f_lineno))
        return local

    def start(frame, event, _):
        return local if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(start)
    try:
        yield
    finally:
        sys.settrace(before)


def run(provider, dtype):
    """Make every call; the implementations that took one."""
    taken = set()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for operation, item, arguments, results in calls(provider, dtype):
            native = {name: fake(value) for name, value in arguments.items()}
            given = inspect.signature(operation.reference).parameters.values()
            positional = [native.pop(one.name) for one in given if one.kind is not one.KEYWORD_ONLY]
            made = item.fn(*positional, **native)
            outputs = made if isinstance(made, tuple) else () if made is None else (made,)
            for output, wanted in zip(outputs, results[: len(operation.returns)], strict=True):
                assert output.device == torch.device("cuda:0"), operation.name
                assert output.dtype is TORCH_DTYPES[DType.parse(wanted.dtype)], operation.name
                assert tuple(output.shape) == wanted.shape, operation.name
            taken.add((operation.name, item.name))
        run_flash(provider, dtype, taken)
        run_writes(provider, dtype)
    return taken


def run_writes(provider, dtype):
    """The table's caches lie flat; those of pools with heads before tokens do not."""
    key = wide((3, 2, 8), TORCH_DTYPES[dtype])
    cache = wide((5, 2, 4, 8), TORCH_DTYPES[dtype]).transpose(1, 2)
    for item in provider.kernels._implementations["kv_write"]:
        assert item.fn(key, key, cache, cache, wide((3,), torch.int32)) is None


def run_flash(provider, dtype, taken):
    """The table's cases have small blocks; flash attention takes those of 256 tokens."""
    for item in provider.kernels._implementations["attention"]:
        for query, kv, table in paged_steps():
            metadata = AttentionMetadata.build(query, kv, table, 256)
            statics = {"dtype": dtype, "block_size": 256, "head_dim": 64, "mode": metadata.mode}
            if item.reasons(statics):
                continue
            q, cache = wide((sum(query), 8, 64), TORCH_DTYPES[dtype]), wide((3, 256, 2, 64))
            cache = cache.to(TORCH_DTYPES[dtype])
            packed = wide((8, 2, sum(query), 64), TORCH_DTYPES[dtype])[:, 0].permute(1, 0, 2)
            for queries in (q, packed, q.transpose(1, 2).contiguous().transpose(1, 2)):
                for window in (None, 5):
                    out = item.fn(queries, cache, cache, metadata, scale=0.1, window=window)
                    assert out.shape == queries.shape
            metadata.native.clear()
            assert item.fn(q, cache, cache, metadata, scale=0.1).dtype is q.dtype
            taken.add(("attention", item.name))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda one: one.value)
def test_every_implementation_is_bound_in_every_dtype(provider, dtype):
    taken = run(provider, dtype)
    registered = {
        (name, item.name)
        for name in OPERATIONS
        for item in provider.kernels._implementations[name]
        if not item.reasons({"dtype": dtype})
    }
    assert registered - taken == set()
    assert {name for name, _ in taken} == set(OPERATIONS)


def test_nothing_is_declared_beyond_what_was_bound(provider):
    assert set(provider.compute_dtypes) == set(DTYPES)
    assert set(provider.kernels.names()) & set(OPERATIONS) == set(OPERATIONS)


def written_calls():
    """The lines of every call in the kernels' modules: (module, function, first, last, source)."""
    for one in MODULES:
        source = inspect.getsource(one)
        for function in ast.parse(source).body:
            if not isinstance(function, ast.FunctionDef) or (one, function.name) in ELSEWHERE:
                continue
            refusals = {
                inner
                for node in ast.walk(function)
                if isinstance(node, ast.Raise)
                for inner in ast.walk(node)
            }
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and node not in refusals:
                    text = ast.get_source_segment(source, node)
                    yield one, function.name, node.lineno, node.end_lineno, text


def missed(lines):
    """The calls of which no line is among ``lines``."""
    return [
        f"{one.__name__}.{name}:{first} {text}"
        for one, name, first, last, text in written_calls()
        if not any((one, line) in lines for line in range(first, last + 1))
    ]


def test_no_call_of_the_kernels_was_left_out(monkeypatch):
    """Fails with the list of calls whose schema nothing here has exercised."""
    monkeypatch.setattr(startup, "begin", lambda *_: None)
    monkeypatch.setattr(startup, "occupy", lambda *_: None)
    lines = set()
    with traced(lines):
        fresh = type("Fake", (CUDAProvider,), {"module": module()})()
        for dtype in (DType.FP32, DType.BF16):
            run(fresh, dtype)
    assert missed(lines) == []


def test_the_list_of_what_is_left_out_can_be_long():
    everything = missed(set())
    assert len(everything) > 100
    for call in ("_varlen_attn(", "scaled_dot_product_attention(", "index_put_("):
        assert any(call in entry for entry in everything), call


def test_functions_that_are_left_out_exist():
    for one, name in ELSEWHERE:
        assert callable(getattr(one, name)), name


def test_graphs_update_their_step():
    with FakeTensorMode(allow_non_fake_inputs=True):
        first, second = (
            AttentionMetadata.build([1, 1], kv, table, 4)
            for kv, table in (([8, 5], [[0, 1], [2, 3]]), ([2, 3], [[1], [0]]))
        )
        for metadata in (first, second):
            step.prepare(metadata, torch.device("cuda:0"))
        assert step.misfit(first, second) == ""
        step.overwrite(first, second)


class TestMistakes:
    """What L0 would catch: each of these is refused by torch itself."""

    @pytest.fixture(autouse=True)
    def faked(self):
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield

    def test_a_wrong_keyword(self):
        with pytest.raises(TypeError, match="block_tables"):
            cuda_attention._varlen_attn(
                *(wide((2, 8, 64)),) * 3, *(wide((3,), torch.int32),) * 2, 1, 1, block_tables=None
            )

    def test_a_tensor_on_another_device(self):
        with pytest.raises(RuntimeError, match="(?i)device"):
            kernels.linear(wide((2, 8)), torch.empty(4, 8, dtype=torch.bfloat16))

    def test_a_look_at_values(self):
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            wide((3,)).sum().item()

    def test_a_shape_that_depends_on_values(self):
        cache, key = wide((2, 4, 2, 8)), wide((3, 2, 8))
        with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException):
            kernels.kv_write(key, key, cache, cache, wide((3,), torch.int64))
