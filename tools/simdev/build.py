"""Compiles what is in C++ here once for each torch, and finds it again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

_FOLDER = Path(__file__).resolve().parent
_HEADERS = ("memory.h", "queue.h")


def library(source: str = "device.cpp") -> str:
    """The path of the compiled device, or of another source here.

    Takes a C++20 compiler about 30 seconds the first time.

    Kept in ``$SIMDEV_CACHE`` or ``~/.cache/simdev``. Raises :class:`RuntimeError` with what the
    compiler said, or that there is none (``$CXX``, else ``g++`` or ``c++``).
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "simdev"
    folder = Path(os.environ.get("SIMDEV_CACHE", home))
    digest = hashlib.sha256(torch.__version__.encode())
    for name in (source, *_HEADERS):
        digest.update((_FOLDER / name).read_bytes())
    target = folder / f"{source.partition('.')[0]}-{digest.hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(_FOLDER / source, target)
    return str(target)


def _compile(source: Path, target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("simdev needs a C++20 compiler: install g++, or name one in CXX.")
    abi = int(torch.compiled_with_cxx11_abi())
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [
            *(compiler, "-std=c++20", "-O1", "-fPIC", "-shared", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"),
            *(f"-I{path}" for path in cpp_extension.include_paths()),
            *(str(source), "-o", str(made)),
            *(f"-L{path}" for path in cpp_extension.library_paths()),
            *("-ltorch_cpu", "-lc10", "-lpthread"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} did not compile {source.name}:\n{done.stderr[-4000:]}")
        made.replace(target)  # at once, whoever else compiles it
