"""Compile a kernel: ``python -m sagellm_backend.cpu.compiled.build MODULE DTYPE`` writes its image.

A process of its own, so that the one that computes keeps the memory that compilers take.
"""

from __future__ import annotations

import gc
import importlib
import re
import sys
from typing import Any

import numba
from llvmlite import binding as llvm

from sagellm_backend.cpu.compiled.image import link
from sagellm_backend.cpu.compiled.storage import FAST
from sagellm_backend.cpu.compiled.vectors import CALLED

_ENTRY = "sagellm_kernel"


def compiled(module: str, dtype: str) -> bytes:
    """The image of ``build(dtype)`` of a module of this package, for this machine's processor."""
    source = importlib.import_module(f"{__package__}.{module}").build(dtype)
    signature = numba.types.void(numba.types.int64)
    options: dict[str, Any] = {"nopython": True, "fastmath": FAST, "error_model": "numpy"}
    function = numba.cfunc(signature, **options)(source)
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    unit = _unit(function.inspect_llvm(), function.native_name.removeprefix("cfunc."))
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(unit, builder)
    return link(target.emit_object(unit), _ENTRY)


def _unit(text: str, inner: str) -> llvm.ModuleRef:
    """The module with an entry of one argument, and nothing else that is seen from outside."""
    # Numba's C wrapper reports exceptions to Python, which these kernels have none of; without it
    # the code needs no symbol of Numba's. Its functions take (result, exception, arguments...).
    if not re.search(rf'^define .*i32 @"?{re.escape(inner)}"?\(ptr', text, re.MULTILINE):
        raise ValueError(f"Numba {numba.__version__} names its functions in a way not known here")
    for name in CALLED:  # in Numba's names a part has its length before it, and a version behind
        called = rf"^(define .*?{len(name)}{name}B.*?) *\{{$"
        text = re.sub(called, r"\1 noinline {", text, flags=re.MULTILINE)
    # LLVM makes calls of the C library of loops that copy or fill, unless told that there is none.
    text = re.sub(r"^(define .*?) *\{$", r'\1 "no-builtins" {', text, flags=re.MULTILINE)
    unit = llvm.parse_assembly(
        f"{text}\ndefine void @{_ENTRY}(i64 %words) {{\n"
        "  %result = alloca ptr\n  %exception = alloca ptr\n"
        f'  %status = call i32 @"{inner}"(ptr %result, ptr %exception, i64 %words)\n'
        "  ret void\n}\n"
    )
    for item in (*unit.functions, *unit.global_variables):
        if not item.is_declaration and item.name != _ENTRY:
            item.linkage = "internal"
    return unit


if __name__ == "__main__":
    gc.disable()  # this process ends before there is anything worth collecting
    sys.stdout.buffer.write(compiled(sys.argv[1], sys.argv[2]))
