"""Memory of the simulated devices: what is allocated, and who is charged for it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np

from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.memory import MemoryLedger

if TYPE_CHECKING:
    from sagellm_backend.reference.streams import Task

DEVICE_BYTES = 1 << 30
"""Memory of each simulated device, unless the config sets a limit."""

ALIGNMENT = 64
"""Every allocation starts at a multiple of this."""

MAX_ALIGNMENT = 1 << 21
"""The largest alignment that a KV layout may ask for."""


class Storage:
    """One allocation; arrays are views of it and keep it alive.

    Every fresh byte is 0xFF: NaN in all floating dtypes, -1 in integers, so that whoever reads
    memory before it is written notices. ``writer`` is the last task that was asked to write here.
    ``freed`` says that the owner gave it back although views of it remain.
    """

    __slots__ = ("__weakref__", "freed", "memory", "writer")

    def __init__(self, nbytes: int, alignment: int = ALIGNMENT) -> None:
        try:
            padded = np.full(nbytes + alignment, 0xFF, np.uint8)
        except MemoryError as error:
            raise OutOfMemoryError(
                f"The host has no {nbytes:,} bytes to simulate device memory.", requested=nbytes
            ) from error
        start = -padded.ctypes.data % alignment
        self.memory = padded[start : start + nbytes]
        self.writer: Task | None = None
        self.freed = False


def charged_storage(nbytes: int, ledger: MemoryLedger) -> Storage:
    """Storage that ``ledger`` counts as ``other`` for as long as it lives.

    Raises :class:`OutOfMemoryError` before anything is allocated.
    """
    ledger.charge(nbytes, "other")
    try:
        storage = Storage(nbytes)
    except BaseException:
        ledger.release(nbytes, "other")
        raise
    weakref.finalize(storage, ledger.release, nbytes, "other").atexit = False
    return storage
