"""L0: no call of torch, of the bindings or of flashinfer is left without a signature to fit.

``test_schemas`` runs the kernels on fake tensors of device ``cuda``; here are all the others, which
a machine without a card cannot run.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bound_calls import calls_in, problem
from fake_cuda.bindings import Driver
from fake_cuda.flashinfer import SIGNATURES

from sagellm_backend.cuda import (
    attention,
    batches,
    compiled,
    export,
    flashinfer_kernels,
    flashinfer_plans,
    kv,
    memory,
    provider,
    startup,
    telemetry,
)
from sagellm_backend.cuda import collectives as own_collectives
from sagellm_backend.torch_support import (
    accelerator,
    arrays,
    collectives,
    comm_groups,
    comm_local,
    comm_waits,
    comm_work,
    communicator,
    device_kernels,
    device_kv,
    errors,
    graph_pool,
    graphs,
    registration,
    rendezvous,
    step,
    streams,
)
from sagellm_backend.torch_support import attention as shared_attention
from sagellm_backend.torch_support import kernels as shared_kernels
from sagellm_backend.torch_support import kv as shared_kv
from sagellm_backend.torch_support import memory as shared_memory
from sagellm_backend.torch_support import provider as shared_provider

OURS = (
    *(attention, batches, compiled, export, flashinfer_kernels, flashinfer_plans, kv, memory),
    *(own_collectives, provider, startup, telemetry),
)
SHARED = (
    *(accelerator, arrays, collectives, comm_groups, comm_local, comm_waits, comm_work),
    *(communicator, device_kernels, device_kv, errors, graph_pool, graphs, registration),
    *(rendezvous, step, streams, shared_attention, shared_kernels, shared_kv, shared_memory),
    shared_provider,
)


def test_every_source_is_looked_at():
    folder = Path(provider.__file__).parent
    light = {"__init__", "asked", "spec", "drivers", "inventory"}  # which import no torch
    assert {path.stem for path in folder.glob("*.py")} - light == {
        one.__name__.rpartition(".")[2] for one in OURS
    }


@pytest.mark.parametrize("module", OURS + SHARED, ids=lambda one: one.__name__.partition(".")[2])
def test_every_call_of_torch_fits(module):
    """Fails with the list of calls that fit nothing."""
    assert [found for found in map(problem, calls_in(module)) if found] == []


def test_the_calls_are_found():
    texts = [call.text for one in OURS + SHARED for call in calls_in(one)]
    for word in (
        *("torch._foreach_copy_(", ".record_stream(", ".wait_event(", "module.graph(native"),
        *("module.memory_snapshot(", "module.mem_get_info(", "torch.cuda.cudart(", ".pin_memory("),
        *("module.init(", "module.get_device_capability(", "module.empty_cache(", ".elapsed_time("),
        *(
            "module.graph_pool_handle(",
            "torch.frombuffer(",
            "module.current_stream(",
            ".is_pinned(",
        ),
        *("torch.empty(nbytes, dtype=torch.uint8", "index_put_(", "queue.synchronize("),
    ):
        assert any(word in text for text in texts), word
    assert len(texts) > 250


MISTAKES = [
    ("module.graph(1, streams=2)", "streams"),
    ("module.mem_get_info(1, 2)", "too many"),
    ("module.Event(timing=True)", "timing"),
    ("queue.wait_event()", "missing"),
    ("torch._foreach_copy_(1, 2, 3, 4)", "no schema"),
    ("torch.empty(3, pinned=True)", "no schema"),
    ("x.index_put_(1, 2, 3, 4, 5)", "no schema"),
    ("x.record_stream()", "no schema"),
    ("x.copy_(1, async_=True)", "no schema"),
    ("torch.cuda.cudart(1)", "too many"),
    ("native.replay(1)", "too many"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_mistake_is_caught(tmp_path, text, said):
    file = tmp_path / "wrong.py"
    file.write_text(f"import torch\n{text}\n")
    module = ModuleType("wrong")
    module.__file__ = str(file)
    (call,) = calls_in(module)
    assert said in problem(call)


def test_priorities_are_asked_of_a_class_that_torch_declares():
    stub = Path(torch._C.__file__).with_name("_C") / "__init__.pyi"
    classes = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ClassDef)]
    (found,) = [node for node in classes if node.name == "_CudaStreamBase"]
    assert "priority_range" in {
        node.name for node in found.body if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("name", ["capture_begin", "capture_end", "replay", "reset", "pool"])
def test_graphs_have_what_is_asked_of_them(name):
    assert graphs.graph_class(torch.cuda) is torch.cuda.CUDAGraph
    assert callable(getattr(torch.cuda.CUDAGraph, name))


@pytest.mark.parametrize(
    ("call", "arguments"), [("can_device_access_peer", (0, 1)), ("is_current_stream_capturing", ())]
)
def test_what_is_found_by_its_name_takes_its_arguments(call, arguments):
    inspect.signature(getattr(torch.cuda, call)).bind(*arguments)


def named(module, *words):
    """The attributes that a source takes of a name, such as ``library``."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in words
    }


def test_flashinfer_has_no_name_that_is_not_in_the_snapshot():
    words = ("library", "self._library")
    asked = {name for one in (flashinfer_kernels, flashinfer_plans) for name in named(one, *words)}
    assert asked == {name.partition(".")[0] for name in SIGNATURES}


def test_the_bindings_have_no_name_that_is_not_made_up():
    asked = named(batches, "driver", "self._driver")
    assert asked >= {"cuMemcpyBatchAsync", "CUdeviceptr", "CUmemcpyAttributes"}
    assert [name for name in asked if not hasattr(Driver(), name)] == []
