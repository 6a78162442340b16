"""Memory of a place and of its host: aligned, charged, and gone when its arrays are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import paddle

from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.kunlun.arrays import KunlunArray
from sagellm_backend.kunlun.errors import check
from sagellm_backend.memory import MemoryLedger, out_of_memory

ALIGNMENT = 64
"""Every pool starts at a multiple of this."""

MAX_ALIGNMENT = 1 << 21
"""The largest alignment that a KV layout may ask for."""

MemoryInfo = Callable[[], tuple[int, int]]
"""Answers (total, free) bytes, for the error when there are too few."""


def empty(
    shape: tuple[int, ...], dtype: Any, place: Any, nbytes: int, info: MemoryInfo, device: str
) -> Any:
    """An uninitialised tensor, charged to nobody.

    Raises :class:`OutOfMemoryError` with the bytes requested, free and in all.
    """
    try:
        with check("allocation", device, nbytes):
            return paddle.empty(list(shape), dtype, device=place)
    except OutOfMemoryError as error:
        total, free = info()
        raise out_of_memory(nbytes, free, total, device) from error


def charged(nbytes: int, ledger: MemoryLedger, make: Callable[[], Any]) -> KunlunArray:
    """The tensor that ``make`` allocates, charged as ``other`` for as long as it is counted.

    Raises :class:`OutOfMemoryError` before anything is allocated where the ledger has no room.
    """
    ledger.charge(nbytes, "other")
    try:
        array = KunlunArray(make())
    except BaseException:
        ledger.release(nbytes, "other")
        raise
    weakref.finalize(array, ledger.release, nbytes, "other").atexit = False
    return array


def pin(tensor: Any) -> Any:
    """``tensor`` in host memory that XPUs copy from without waiting."""
    return tensor.pin_memory()


def can_pin(place: Any) -> bool:
    """Whether Paddle has pinned host memory for devices like ``place``."""
    if not place.is_xpu_place():
        return False
    try:
        pinned = pin(paddle.empty([1], paddle.uint8, device=paddle.CPUPlace()))
    except Exception:  # noqa: BLE001 - of several kinds, from Paddle and from the driver
        return False
    return bool(pinned.place.is_xpu_pinned_place())
