"""Blocks copied by libc's memcpy in a loop of C, shared out over threads: the limit of block copies."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sagellm_backend.errors import UnavailableError

# On as many threads as OpenMP has; a library of the same name that a framework loaded is shared.
_SOURCE = """
#include <string.h>
void copy_blocks(char *to, const char *from, const long *to_ids, const long *from_ids,
                 long count, long bytes) {
#pragma omp parallel for schedule(static)
    for (long i = 0; i < count; i++)
        memcpy(to + to_ids[i] * bytes, from + from_ids[i] * bytes, bytes);
}
"""


class BlockMemcpy:
    """``memcpy`` of scattered blocks between two areas; made by the C compiler of the machine.

    Raises :class:`UnavailableError` where there is none, or none with OpenMP.
    """

    def __init__(self) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise UnavailableError("needs a C compiler, and there is no cc.")
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "copy.c", Path(folder) / "copy.so"
            source.write_text(_SOURCE, encoding="ascii")
            command = [
                compiler,
                "-O2",
                "-fopenmp",
                "-fPIC",
                "-shared",
                "-o",
                str(library),
                str(source),
            ]
            done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
            if done.returncode:
                raise UnavailableError(f"{compiler} failed: {done.stderr.strip()[-200:]}")
            self._copy = ctypes.CDLL(str(library)).copy_blocks
        pointer, long = ctypes.c_void_p, ctypes.c_long
        self._copy.argtypes = (pointer, pointer, pointer, pointer, long, long)
        self._copy.restype = None

    def __call__(
        self,
        target: np.ndarray[Any, Any],
        source: np.ndarray[Any, Any],
        target_ids: np.ndarray[Any, Any],
        source_ids: np.ndarray[Any, Any],
    ) -> None:
        """Row ``source_ids[i]`` of ``source`` over row ``target_ids[i]`` of ``target``; int64 ids."""
        assert target.shape[1:] == source.shape[1:]
        assert target.flags.c_contiguous
        assert source.flags.c_contiguous
        assert target_ids.dtype == source_ids.dtype == np.int64
        addresses = (array.ctypes.data for array in (target, source, target_ids, source_ids))
        self._copy(*addresses, len(target_ids), target[0].nbytes)
