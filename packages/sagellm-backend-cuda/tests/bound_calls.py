"""Every call that a source makes of torch, as it is written, against torch's own signatures.

A call is followed from the imports of its module, or known by what it is called on: the device
module, a stream, an event, a graph, a tensor. What has no signature in Python is bound to the
schemas of the operators of that name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed

DEVICE_MODULES = {"module", "self.module", "self._module", "provider.module"}
NATIVE = (torch.cuda.Stream, torch.cuda.Event, torch.cuda.CUDAGraph)
"""Classes whose objects are called by these names in the sources."""

NATIVE_NAMES = {
    *("native", "self.native", "self._native", "event.native", "start.native", "stream.native"),
    *("queue", "stream", "current", "copied", "before", "after", "done", "event", "self._event"),
    *("self._stream", "self._turn"),
}
NEVER_TENSORS = {
    "self",
    "os",
    "np",
    "memory",
    "kernels",
    "plain",
    "step",
    "streams",
    "device_kernels",
}
PYTHON_ONLY = {"dtype", "device", "pin_memory", "non_blocking", "memory_format", "layout", "copy"}
VARIADIC = {"view", "reshape", "empty", "ones", "zeros", "expand", "permute"}


class Call(NamedTuple):
    """One call: where, on what (its class, or ``None``), its name, its arguments."""

    where: str
    text: str
    target: object
    count: int
    keywords: tuple[str | None, ...]
    open: bool
    """Whether there are arguments behind a star."""


def calls_in(module):
    """The calls of torch in a module's source."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source)
    names = _imported(tree, module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            target = _target(node.func, names)
            if target is not None:
                yield Call(
                    f"{module.__name__}:{node.lineno}",
                    ast.unparse(node),
                    target,
                    sum(not isinstance(one, ast.Starred) for one in node.args),
                    tuple(word.arg for word in node.keywords if word.arg),
                    any(isinstance(one, ast.Starred) for one in node.args)
                    or any(word.arg is None for word in node.keywords),
                )


def _imported(tree, module):
    """Names of the source that are torch's."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.name.split(".")[0] == "torch":
                    loaded = importlib.import_module(one.name)
                    found[one.asname or "torch"] = loaded if one.asname else torch
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for one in node.names:
                holder = importlib.import_module(node.module)
                value = getattr(holder, one.name, None)
                if value is None:
                    value = importlib.import_module(f"{node.module}.{one.name}")
                found[one.asname or one.name] = value
    return found


def _target(func, names):
    path = ast.unparse(func)
    root, *rest = path.split(".")
    if root in names and all(part.isidentifier() for part in rest):
        found = names[root]
        for part in rest:
            found = getattr(found, part)
        return found
    if not isinstance(func, ast.Attribute):
        return None
    on, name = ast.unparse(func.value), func.attr
    if on in DEVICE_MODULES:
        return getattr(torch.cuda, name)
    if on.endswith("module.Stream") and name == "priority_range":
        return None  # of a C++ class that this build may not have; looked for by itself
    if on in NATIVE_NAMES:
        return next((getattr(one, name) for one in NATIVE if hasattr(one, name)), None)
    if on not in NEVER_TENSORS and hasattr(torch.Tensor, name) and _schemas(name):
        return getattr(torch.Tensor, name)
    return None


def problem(call):
    """Why a call does not fit what it calls; ``None`` where it does."""
    target = call.target
    try:
        signature = _signature(target)
    except ValueError:
        return _schema_problem(call)
    bound = signature.bind_partial if call.open else signature.bind
    method = "self" in list(signature.parameters)[:1] and not inspect.isclass(target)
    try:
        bound(*[None] * (call.count + method), **dict.fromkeys(call.keywords))
    except TypeError as error:
        # Methods of tensors that torch has in Python take what their operators take too.
        known = _schemas(getattr(target, "__name__", ""))
        return (
            None
            if known and _schema_problem(call) is None
            else f"{call.where} {call.text}: {error}"
        )
    return None


def _signature(target):
    if inspect.isclass(target) and "__new__" in vars(target):
        parameters = list(inspect.signature(target.__new__).parameters.values())
        return inspect.Signature(parameters[1:])
    return inspect.signature(target)


def _schemas(name):
    return torch._C._jit_get_schemas_for_operator(f"aten::{name}")


def _schema_problem(call):
    name = getattr(call.target, "__name__", "")
    on_tensor = getattr(torch.Tensor, name, None) is call.target
    schemas = _schemas(name)
    for schema in schemas:
        arguments = [one for one in schema.arguments if not one.kwarg_only]
        room = len(arguments) - on_tensor
        known = {one.name for one in schema.arguments} | PYTHON_ONLY
        given = {one.name for one in arguments[: call.count + on_tensor]} | set(call.keywords)
        needed = {one.name for one in schema.arguments if not one.has_default_value()} - given
        fits = call.count <= room or name in VARIADIC
        if fits and set(call.keywords) <= known and (call.open or not needed):
            return None
    if not schemas and (inspect.isclass(call.target) or call.target in TRUSTED):
        return None
    return f"{call.where} {call.text}: no schema of {name or call.target} takes it"


TRUSTED = {
    torch.device,
    torch.Tensor.data_ptr,
    torch.Tensor.stride,
    torch.from_numpy,
    torch.frombuffer,
}
"""Parts of torch in C++ with neither signature nor schema. The simulated device runs every one."""
