"""Host memory: how much there is, and tensors whose bytes are accounted for."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import torch

from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.memory import MemoryLedger

ALIGNMENT = 64
"""Every allocation starts at a multiple of this: one cache line, one AVX-512 register."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def device_memory() -> tuple[int, int]:
    """(total, free) bytes that this process could use: the machine's, or its container's."""
    total, free = _machine_memory()
    for limit_file, usage_file in _CGROUP:
        limit, usage = _number(limit_file), _number(usage_file)
        if limit is not None and usage is not None and limit < total:
            return limit, max(0, min(free, limit - usage))
    return total, free


def _machine_memory() -> tuple[int, int]:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return _sysconf_memory()
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes["MemTotal"], sizes["MemAvailable"]


def _sysconf_memory() -> tuple[int, int]:
    # macOS has no /proc and does not say how much is free.
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def allocate(nbytes: int) -> torch.Tensor:
    """``nbytes`` of aligned, uninitialised memory as an uint8 tensor."""
    return torch.from_numpy(_aligned(nbytes))


def allocate_charged(nbytes: int, ledger: MemoryLedger) -> torch.Tensor:
    """The same, charged to ``ledger`` until no tensor uses the memory any more."""
    ledger.charge(nbytes, "other")
    try:
        memory = _aligned(nbytes)
    except BaseException:
        ledger.release(nbytes, "other")
        raise
    # The tensor's storage holds this array, so it dies with the last view of the storage.
    weakref.finalize(memory, ledger.release, nbytes, "other").atexit = False
    return torch.from_numpy(memory)


def _aligned(nbytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    try:
        raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    except MemoryError as error:
        total, free = device_memory()
        raise OutOfMemoryError(
            f"The operating system refused {nbytes:,} bytes; {free:,} of {total:,} are free.",
            hint="Set a smaller pool, or config 'memory_limit' to what the machine can spare.",
            requested=nbytes,
            free=free,
            limit=total,
        ) from error
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]
