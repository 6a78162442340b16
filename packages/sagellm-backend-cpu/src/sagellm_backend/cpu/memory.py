"""Host memory: tensors whose bytes are accounted for."""

from __future__ import annotations

import weakref

import numpy as np
import torch

from sagellm_backend.cpu import machine
from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.memory import MemoryLedger

ALIGNMENT = 64
"""Every allocation starts at a multiple of this: one cache line, one AVX-512 register."""


def allocate(nbytes: int, alignment: int = ALIGNMENT) -> torch.Tensor:
    """Uninitialised memory that starts at a multiple of ``alignment``, as an uint8 tensor."""
    return torch.from_numpy(_aligned(nbytes, max(alignment, ALIGNMENT)))


def allocate_charged(nbytes: int, ledger: MemoryLedger) -> torch.Tensor:
    """Memory aligned to :data:`ALIGNMENT`, charged to ``ledger`` until no tensor uses it."""
    ledger.charge(nbytes, "other")
    try:
        memory = _aligned(nbytes, ALIGNMENT)
    except BaseException:
        ledger.release(nbytes, "other")
        raise
    # The tensor's storage holds this array, so it dies with the last view of the storage.
    weakref.finalize(memory, ledger.release, nbytes, "other").atexit = False
    return torch.from_numpy(memory)


def _aligned(nbytes: int, alignment: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    try:
        raw = np.empty(nbytes + alignment, np.uint8)
    except MemoryError as error:
        total, free = machine.memory()
        raise OutOfMemoryError(
            f"The operating system refused {nbytes:,} bytes; {free:,} of {total:,} are free.",
            hint="Set a smaller pool, or config 'memory_limit' to what the machine can spare.",
            requested=nbytes,
            free=free,
            limit=total,
        ) from error
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes]
