"""Run compiled code on the threads that torch computes with.

A pool of our own would have its threads run beside torch's, which keep spinning for a while after
each operation: two pools on the same processors halve both. libgomp's entry point is what the
compiler calls for ``#pragma omp parallel``, and LLVM's and Intel's OpenMP offer it too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sagellm_backend.cpu import capturing

_get_num_threads = torch.get_num_threads
_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def entry(name: str) -> Any:
    """A function of the OpenMP that torch has loaded; ``None`` if it has none of this name."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Looking a name up in a library looks in those that it was linked to as well.
        return getattr(ctypes.CDLL(str(library)), name)
    except (OSError, AttributeError):
        return None


@cache
def _parallel() -> Callable[..., Any] | None:
    """``GOMP_parallel(function, argument, threads, flags)``."""
    found = entry("GOMP_parallel")
    return None if found is None else _SIGNATURE(ctypes.cast(found, ctypes.c_void_p).value or 0)


def run(function: Any, words: Any, chunks: int) -> None:
    """Call ``function(words)`` on as many of torch's threads as there are chunks for.

    Each call takes chunks from the counter in word 0 until none are left, so any number of threads
    does the whole work. Returns when it is done; lets go of the GIL in the meantime.
    """
    if capturing.recording is not None:
        capturing.launch(function, words, chunks)
    if chunks > 1:
        threads = min(_get_num_threads(), chunks)
        parallel = _parallel() if threads > 1 else None
        if parallel is not None:
            parallel(function, words, threads, 0)
            return
    function(words)
