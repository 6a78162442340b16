"""L0 for the runtime: every call of the device module, as it is written, bound to torch.cuda's own.

The calls are found in the sources: ``module.name(...)`` with its keywords and count of arguments.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch

from sagellm_backend.cuda import memory as cuda_memory
from sagellm_backend.cuda import provider, startup, telemetry
from sagellm_backend.torch_support import accelerator, device_kv, graphs, memory, streams

SOURCES = (
    *(accelerator, device_kv, graphs, memory, streams),
    *(cuda_memory, provider, startup, telemetry),
)


def is_module(node):
    """Whether an expression is the device module: ``module``, ``self.module``, ``torch.cuda``."""
    return ast.unparse(node) in {
        *("module", "self.module", "self._module", "torch.cuda"),
        *("module.Stream", "provider.module"),
    }


def calls():
    """(where, attribute path, count of positional arguments, keywords)."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(inspect.getsource(source))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if is_module(node.func.value):
                inner = ast.unparse(node.func.value).endswith(".Stream")
                path = ("Stream." if inner else "") + node.func.attr
                keywords = tuple(word.arg for word in node.keywords)
                place = f"{source.__name__.rpartition('.')[2]}:{node.lineno}.{node.col_offset}"
                yield pytest.param(path, len(node.args), keywords, id=f"{place}-{path}")


def declared_members(name):
    """The methods that torch's stub of its C++ classes declares."""
    stub = Path(torch._C.__file__).with_name("_C") / "__init__.pyi"
    classes = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ClassDef)]
    (found,) = [node for node in classes if node.name == name]
    return {node.name for node in found.body if isinstance(node, ast.FunctionDef)}


def signature(path):
    found = torch.cuda
    for name in path.split("."):
        found = getattr(found, name)
    if inspect.isclass(found) and "__new__" in vars(found):
        parameters = list(inspect.signature(found.__new__).parameters.values())
        return inspect.Signature(parameters[1:])
    return inspect.signature(found)


@pytest.mark.parametrize(("path", "count", "keywords"), list(calls()))
def test_a_call_fits_torch_cuda(path, count, keywords):
    if path == "Stream.priority_range":  # of a C++ class that this build may not have
        assert (count, keywords) == (0, ())
        assert "priority_range" in declared_members("_CudaStreamBase")
        return
    signature(path).bind(*[None] * count, **dict.fromkeys(keywords))


def test_the_calls_are_found():
    found = {param.values[0] for param in calls()}
    wanted = {
        *("Stream", "Stream.priority_range", "Event", "stream", "current_stream", "synchronize"),
        *("graph", "memory_snapshot", "mem_get_info", "empty_cache", "device_count", "init"),
        *("get_device_name", "get_device_capability", "cudart"),
    }
    assert wanted - found == set()


@pytest.mark.parametrize(
    ("path", "count", "keywords"),
    [("graph", 1, ("streams",)), ("mem_get_info", 2, ()), ("Event", 0, ("timing",))],
)
def test_a_mistake_is_caught(path, count, keywords):
    with pytest.raises(TypeError):
        signature(path).bind(*[None] * count, **dict.fromkeys(keywords))


@pytest.mark.parametrize("name", ["capture_begin", "capture_end", "replay", "reset", "pool"])
def test_graphs_have_what_is_asked_of_them(name):
    assert graphs.graph_class(torch.cuda) is torch.cuda.CUDAGraph
    assert callable(getattr(torch.cuda.CUDAGraph, name))


def test_peer_access_is_asked_for_by_two_devices():
    inspect.signature(torch.cuda.can_device_access_peer).bind(0, 1)
