"""Whether this process may use the matrix unit of its processor (AMX)."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from pathlib import Path

INT8 = frozenset({"amx_tile", "amx_int8", "avx512f", "avx512bw", "avx512vbmi"})
BF16 = frozenset({"amx_tile", "amx_bf16", "avx512f", "avx512bw", "avx512_bf16"})
"""What the kernels for a dtype need of the processor."""

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@cache
def available(needed: frozenset[str]) -> bool:
    """Whether the processor has what is needed, and Linux lets this process use it, which is asked once.

    Linux gives leave to a process with all of its threads, and to those that it starts; it refuses
    it where a signal stack of a thread is too small for what the unit holds.
    (Linux documentation, x86/xstate.)
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    if not set(flags.split()) >= needed:
        return False
    ask = ctypes.CDLL(None, use_errno=True).syscall
    return bool(ask(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)
