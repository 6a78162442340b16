"""Rows of the cpu package's compiled kernels: the first use on a machine, and in a process."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from sagellm_backend.bench.row import LIMIT, MILLISECONDS, Bound, Match, Row, Side, Target, add
from sagellm_backend.bench.session import Session
from sagellm_backend.errors import CapabilityError, UnavailableError

KERNELS = (
    ("paged_attention", "fp32"),
    ("paged_attention", "bf16"),
    ("int_linear", "int8"),
    ("int_matrix", "int8"),
    ("block_copy", "bytes"),
)
COLD_S, LOADED_S = 3.0, 0.05
"""What a first use may take: without the compiled code, and with it on disk."""


@contextmanager
def cache_in(folder: str) -> Iterator[None]:
    """Compiled code is kept in this folder meanwhile."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def _use(module: str, dtype: str, folder: str) -> float:
    """Seconds until the kernel can be called."""
    from sagellm_backend.cpu.compiled.kernel import Kernel

    with cache_in(folder):
        began = time.perf_counter()
        found = Kernel(module, dtype).function()
        spent = time.perf_counter() - began
    if found is None:
        raise UnavailableError(f"{module} for {dtype} cannot be compiled here.")
    return spent


def _cold(module: str, dtype: str) -> Callable[[float], list[float]]:
    def turn(_: float) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            return [_use(module, dtype, folder)]

    return turn


def _loaded(module: str, dtype: str) -> Callable[[float], list[float]]:
    folder = tempfile.TemporaryDirectory()
    _use(module, dtype, folder.name)
    return lambda _: [_use(module, dtype, folder.name)]


def _match(session: Session, module: str, dtype: str, *, cold: bool) -> Match:
    if session.provider.name != "cpu":
        raise CapabilityError("compiled kernels", session.provider.name, "they are the cpu's.")
    make, allowed = (_cold, COLD_S) if cold else (_loaded, LOADED_S)
    bound = Bound("allowed", f"{1e3 * allowed:g} ms, which is allowed", allowed)
    return Match(Side("ours", make(module, dtype)), bound=bound)


def add_rows() -> None:
    """Declare them."""
    for module, dtype in KERNELS:
        for cold, name, text in (
            (True, "compile", "the first on a machine, which compiles it"),
            (False, "load", "the first of a process, from the cache on disk"),
        ):
            add(
                Row(
                    f"{name}-{module}-{dtype}",
                    "compiled kernels",
                    f"First use of the kernel {module} for {dtype}: {text}",
                    MILLISECONDS,
                    partial(_match, module=module, dtype=dtype, cold=cold),
                    (Target(LIMIT, ratio=1.0),),
                )
            )
