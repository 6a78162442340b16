"""Compiles the simulator against the headers that the torch_npu wheel carries.

``python -m ascend_sim.build FOLDER`` makes what looks like an installation of CANN there:
``lib64/libascendcl.so`` and the other libraries that torch_npu links. It needs a C++20 compiler
(``$CXX``, else ``g++`` or ``c++``), takes about 20 seconds, and imports neither torch nor torch_npu.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = ("runtime", "memory", "virtual_memory", "copies", "streams", "events", "graphs", "absent")
EMPTY = ("ge_runner", "graph", "acl_tdt_channel")
KERNELS = "ascend_sim_kernels.so"
PARTS = ("opp", "runtime", "compiler")  # that torch_npu looks for in an installation
_STAMP = "ascend_sim.digest"


def build(folder: Path) -> Path:
    """The folder of the libraries, made anew where a source or torch_npu has changed.

    Raises :class:`RuntimeError` with what the compiler said, or that something is missing.
    """
    libraries = folder / "lib64"
    for part in ("lib64", *PARTS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    stamp = libraries / _STAMP
    digest = _digest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return libraries
    sources = [str(HERE / f"{name}.cpp") for name in RUNTIME]
    _link(libraries, "ascendcl", *sources, "-lpthread", "-ldl")
    _link(libraries, "acl_op_compiler", str(HERE / "compiler.cpp"))
    nothing = libraries / "nothing.cpp"
    nothing.write_text("", encoding="utf-8")
    for name in EMPTY:
        _link(libraries, name, str(nothing))
    hccl = [str(HERE / f"{name}.cpp") for name in ("hccl", "mailbox")]
    _link(libraries, "hccl", *hccl, f"-L{libraries}", "-lascendcl")
    _link(libraries, "atb", str(HERE / "atb.cpp"))
    nothing.unlink()
    _compile_kernels(libraries)
    stamp.write_text(digest, encoding="utf-8")
    return libraries


def headers() -> list[Path]:
    """The folders of the headers in the torch_npu wheel."""
    include = _installed("torch_npu") / "include"
    return [
        include,
        include / "third_party" / "acl" / "inc",
        include / "third_party" / "hccl" / "inc",
    ]


def compiler() -> str:
    """The C++ compiler."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise RuntimeError("The simulator needs a C++20 compiler: install g++, or name one in CXX.")
    return found


def compile_(*arguments: str) -> None:
    """Run the compiler; what it says becomes the error."""
    done = subprocess.run(
        [compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{compiler()} failed:\n{done.stderr[-4000:]}")


def _installed(package: str) -> Path:
    """Where a package is, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{package} is not installed: pip install {package}==2.13.0")
    return Path(spec.origin).parent


def _compile_kernels(folder: Path) -> None:
    torch, npu = _installed("torch"), _installed("torch_npu")
    include = [torch / "include", torch / "include" / "torch" / "csrc" / "api" / "include"]
    made = folder / "kernels.new"
    compile_(
        *("-w", *(f"-I{path}" for path in (*include, *headers()))),
        *(str(HERE / "kernels.cpp"), "-o", str(made)),
        *(f"-L{path}" for path in (torch / "lib", npu / "lib", folder)),
        *("-ltorch_npu", "-lascendcl", "-ltorch_cpu", "-lc10", "-Wl,--allow-shlib-undefined"),
    )
    made.replace(folder / KERNELS)


def _link(folder: Path, name: str, *arguments: str) -> None:
    target = folder / f"lib{name}.so"
    made = target.with_suffix(".new")
    include = [f"-I{path}" for path in headers()]
    compile_("-Wall", *include, *arguments, f"-Wl,-soname,{target.name}", "-o", str(made))
    made.replace(target)


def _digest() -> str:
    found = hashlib.sha256(str(_installed("torch_npu")).encode())
    for path in sorted((*HERE.glob("*.cpp"), *HERE.glob("*.h"), HERE / "build.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
