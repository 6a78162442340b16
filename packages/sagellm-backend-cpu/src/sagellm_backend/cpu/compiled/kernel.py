"""A kernel: compiled once on a machine, then from the cache in every process."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

from sagellm_backend.cpu.compiled import cache, image

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_TIMEOUT = 60.0


class Kernel:
    """The function ``build(dtype)`` of a module of this package, compiled for this processor.

    Compiling takes about a second, attention three, once on a machine; loading from the cache some milliseconds.
    Thread-safe.
    """

    def __init__(self, module: str, dtype: str) -> None:
        self._module, self._dtype = module, dtype
        self._function: Any = None
        self._tried = False

    def function(self) -> Any:
        """The compiled function, which takes the address of its words.

        ``None`` where it cannot be had, of which one line is logged: without Numba, on other
        machines than Linux on x86-64, or where no memory may be made executable.
        """
        if not self._tried:
            with _lock:
                self._load()
        return self._function

    def _load(self) -> None:
        if self._tried:
            return  # by the thread that this one waited for
        try:
            self._function = image.load(_code(self._module, self._dtype))
            self._function.name = self._module
        except (OSError, ValueError, metadata.PackageNotFoundError) as error:
            _log.warning(
                "%s for %s is not compiled (%s); plain torch computes instead",
                self._module,
                self._dtype,
                error,
            )
        finally:
            self._tried = True


def _code(module: str, dtype: str) -> bytes:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ValueError(f"{sys.platform} on {platform.machine()} is not Linux on x86-64")
    key = _key(module, dtype)
    code = cache.read(key)
    if code is None:
        code = _compile(module, dtype)
        cache.write(key, code)
    return code


def _key(module: str, dtype: str) -> str:
    """A name for what the code depends on: sources, compilers, processor."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    parts = [path.read_text(encoding="utf-8") for path in sources]
    parts += [metadata.version(name) for name in ("numba", "llvmlite", "numpy")]
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    parts += re.findall(r"^(?:model name|flags)\s*:.*$", processor, re.MULTILINE)[:2]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{module}-{dtype}-{digest[:32]}"


def _compile(module: str, dtype: str) -> bytes:
    """Have another process compile. Raises :class:`ValueError` with its last words."""
    command = [sys.executable, "-m", f"{__package__}.build", module, dtype]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "NUMBA_OPT": "0",  # build.py optimises what Numba makes, once and as a whole
    }
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, on a module of ours
            command, env=environment, capture_output=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"compiling took over {_TIMEOUT:.0f} s") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValueError("".join(last) or f"the compiler ended with {done.returncode}")
    return done.stdout
