"""The schemas as operators of this torch, and a record of what was called.

Beside the real torch_npu, which has the operators already, the kernels are those of the CPU: whoever
simulates its device (tests at L1) runs them on host views of its memory.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

SCHEMAS = {
    line.partition("(")[0]: line.partition("::")[2]
    for line in Path(__file__).with_name("schemas.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
}
"""By qualified name, such as ``npu::npu_swiglu``."""

CALLED = set()
"""The qualified names of the operators that were called."""

CHIP = SimpleNamespace(version=222)
"""The chip that is there now, by its SoC version."""

IS_REAL = "torch_npu" in sys.modules
"""Whether the operators are those of the real torch_npu."""

_libraries = {
    name: torch.library.Library(name, "IMPL" if IS_REAL else "DEF") for name in ("npu", "atb")
}
if not IS_REAL:
    for _name, _schema in SCHEMAS.items():
        _libraries[_name.partition("::")[0]].define(_schema)


class VendorRefusalError(RuntimeError):
    """What an operator says to arguments that it does not take."""


def demand(condition, what):
    """Refuse a call, as the vendor's operators do."""
    if not condition:
        raise VendorRefusalError(what)


def operator(qualified, *versions):
    """Decorate a reference kernel, which gets all arguments of its schema by name.

    ``versions`` are ranges of chips that have the operator.
    """
    schema = torch._C.parse_schema(qualified.partition("::")[0] + "::" + SCHEMAS[qualified])

    def add(kernel):
        @functools.wraps(kernel)
        def run(*args, **kwargs):
            given = dict(zip((item.name for item in schema.arguments), args, strict=False))
            call = {item.name: item.default_value for item in schema.arguments}
            call.update(given, **kwargs)
            CALLED.add(qualified)
            demand(any(CHIP.version in chips for chips in versions), "no such operator on the chip")
            _check_arrays(call)
            return kernel(SimpleNamespace(**call))

        namespace, name = qualified.split("::")
        _libraries[namespace].impl(name, run, "CPU" if IS_REAL else "PrivateUse1")
        return run

    return add


def _check_arrays(call):
    for name, value in call.items():
        if isinstance(value, torch.Tensor):
            demand(CHIP.version >= 220 or value.dtype is not torch.bfloat16, f"{name} is bf16")
            demand(value.dim() == 0 or value.numel(), f"{name} is empty")
