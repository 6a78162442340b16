"""Compiles the runtime of the simulated device once for each Paddle, and finds it again.

``python tools/kunlun_sim/build.py`` prints the folder that ``CUSTOM_DEVICE_ROOT`` has to name before
Paddle is imported. Paddle itself is not imported here: that would load the devices.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_SOURCES = ("runtime.cpp", "kernels.cpp", "matmul.cpp")
_HEADERS = ("kernels.h", "memory.h", "refuse.h", "streams.h", "tensors.h", "trace.h", "views.h")
NAME = "libkunlun_sim.so"


def folder() -> str:
    """The folder with the compiled runtime and nothing else.

    Takes a C++17 compiler a few seconds the first time. Kept in ``$KUNLUN_SIM_CACHE`` or
    ``~/.cache/kunlun_sim``. Raises :class:`RuntimeError` with what the compiler said, or that there
    is none (``$CXX``, else ``g++`` or ``c++``), or that there is no Paddle.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kunlun_sim"
    cache = Path(os.environ.get("KUNLUN_SIM_CACHE", home))
    paddle = _paddle()
    digest = hashlib.sha256(f"{paddle} {importlib.metadata.version('paddlepaddle')}".encode())
    for name in (*_SOURCES, *_HEADERS):
        digest.update((_FOLDER / name).read_bytes())
    target = cache / digest.hexdigest()[:16]
    if not (target / NAME).exists():
        target.mkdir(parents=True, exist_ok=True)
        _compile(paddle, target / NAME)
    return str(target)


def _paddle() -> Path:
    spec = importlib.util.find_spec("paddle")
    if spec is None or spec.origin is None:
        raise RuntimeError("The simulated device needs Paddle: pip install paddlepaddle==3.3.1")
    return Path(spec.origin).parent


def _compile(paddle: Path, target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("The simulated device needs a C++17 compiler: install g++, or set CXX.")
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
        made = Path(scratch) / target.name
        command = [
            *(compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared"),
            *(f"-I{paddle / 'include'}", f"-isystem{paddle / 'include' / 'third_party'}"),
            *(str(_FOLDER / source) for source in _SOURCES),
            *("-o", str(made)),
            *(
                f"-L{paddle / 'libs'}",
                "-l:libphi_core.so",
                "-l:libcommon.so",
                "-l:libmklml_intel.so",
            ),
            *("-lpthread", f"-Wl,-rpath,{paddle / 'libs'}"),
            "-Wl,-z,nodelete",  # threads of streams run until the process ends
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} did not compile the runtime:\n{done.stderr[-4000:]}")
        made.replace(target)  # at once, whoever else compiles it


if __name__ == "__main__":
    print(folder())
