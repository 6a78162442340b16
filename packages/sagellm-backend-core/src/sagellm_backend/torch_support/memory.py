"""Memory of a torch device and of its host: aligned, charged, and gone when its storage dies."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import torch

from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.memory import MemoryLedger, out_of_memory
from sagellm_backend.torch_support.errors import check

ALIGNMENT = 64
"""Every allocation starts at a multiple of this."""

MAX_ALIGNMENT = 1 << 21
"""The largest alignment that a KV layout may ask for."""

MemoryInfo = Callable[[], tuple[int, int]]
"""Answers (total, free) bytes, for the error when there are too few."""


def allocate(
    nbytes: int,
    device: torch.device,
    info: MemoryInfo,
    *,
    pinned: bool = False,
    alignment: int = ALIGNMENT,
) -> torch.Tensor:
    """Uninitialised uint8 memory that starts at a multiple of ``alignment``, charged to nobody.

    Raises :class:`OutOfMemoryError` with the bytes requested, free and in all.
    """
    memory = _take(nbytes, device, info, pinned)
    start = -memory.data_ptr() % alignment
    if start:
        memory = _take(nbytes + alignment, device, info, pinned)
        start = -memory.data_ptr() % alignment
    return memory[start : start + nbytes]


def charge(nbytes: int, ledger: MemoryLedger, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The memory that ``make`` allocates, charged as ``other`` until no tensor uses its storage.

    Raises :class:`OutOfMemoryError` before anything is allocated where the ledger has no room.
    """
    ledger.charge(nbytes, "other")
    try:
        memory = make()
    except BaseException:
        ledger.release(nbytes, "other")
        raise
    # torch keeps the Python object of a storage for as long as any tensor has the storage.
    storage = memory.untyped_storage()
    weakref.finalize(storage, ledger.release, nbytes, "other").atexit = False
    return memory


def device_memory(module: Any, device: torch.device) -> tuple[int, int]:
    """(total, free) bytes of a device, every process counted as far as the module can tell."""
    with check("mem_get_info", str(device)):
        if hasattr(module, "mem_get_info"):
            free, total = module.mem_get_info(device)
            return int(total), int(free)
        total = int(module.get_device_properties(device).total_memory)
        return total, total - int(module.memory_reserved(device))


def host_memory() -> tuple[int, int]:
    """(total, free) bytes of the machine; (0, 0) where the system does not say."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        return page * total, page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0, 0


def can_pin() -> bool:
    """Whether torch has pinned memory for the accelerator of this process."""
    try:
        return torch.empty(1, dtype=torch.uint8, pin_memory=True).is_pinned()
    except RuntimeError:
        return False


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on ``device`` in the order of its current stream.

    The host does not wait for it where memory can be pinned; ``host`` may be changed at once.
    """
    if device.type == "cpu":
        return host.clone()
    try:
        pinned = host.pin_memory()
    except RuntimeError:
        return host.to(device)
    return pinned.to(device, non_blocking=True)


def _take(nbytes: int, device: torch.device, info: MemoryInfo, pinned: bool) -> torch.Tensor:
    try:
        with check("allocation", str(device), nbytes):
            return torch.empty(nbytes, dtype=torch.uint8, device=device, pin_memory=pinned)
    except OutOfMemoryError as error:
        total, free = info()
        raise out_of_memory(nbytes, free, total, str(device)) from error
