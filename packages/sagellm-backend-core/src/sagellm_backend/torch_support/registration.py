"""Host memory that exists already, made fit for asynchronous copies: registered page by page.

torch rounds what it pins up to a power of two, so that a pool of 5 GiB would take 8. Memory of our
own that is registered takes its pages and no more.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy.typing as npt
import torch

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.memory import out_of_memory
from sagellm_backend.torch_support.errors import check
from sagellm_backend.torch_support.memory import host_memory

PAGE = mmap.PAGESIZE
FROM = 1 << 20
"""From this size on memory is registered; below, torch's cache of pinned blocks is faster."""


class Registrar(Protocol):
    """What a device module or its runtime offers."""

    def register(self, address: int, nbytes: int) -> None:
        """Lock the pages of a range; raises :class:`RuntimeError` where that is refused."""

    def unregister(self, address: int) -> None:
        """Undo :meth:`register` of the range that starts there."""


class Registrations:
    """The ranges that a process has registered. Thread-safe.

    Each page may be registered once: a second time is refused before the driver is asked.
    ``settle()`` waits for all copies that may be under way.
    """

    def __init__(self, registrar: Registrar, settle: Callable[[], None]) -> None:
        self._registrar, self._settle = registrar, settle
        self._lock = threading.Lock()
        self._ranges: dict[int, int] = {}

    @contextmanager
    def context(self, array: npt.NDArray[Any]) -> Iterator[None]:
        """Register the memory of ``array`` until the context is left."""
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            raise InvalidArgumentError(
                f"Memory to be registered must be contiguous; the array has strides "
                f"{array.strides}.",
                hint="Register the array that this is a view of.",
            )
        if not array.nbytes:
            yield
            return
        address = array.ctypes.data
        self._add(address, array.nbytes)
        try:
            yield
        finally:
            self._remove(address)

    def allocate(self, nbytes: int, alignment: int) -> torch.Tensor:
        """Registered uint8 memory that starts at a multiple of ``alignment``.

        It stays registered until no tensor uses its storage.
        """
        spare = alignment if alignment > PAGE else 0
        pages = _map(nbytes + spare)
        memory = torch.frombuffer(pages, dtype=torch.uint8)
        address = memory.data_ptr()
        self._add(address, nbytes + spare)
        # The finalizer holds the pages: they are given back when they are no longer registered.
        storage = memory.untyped_storage()
        weakref.finalize(storage, self._end, address, pages).atexit = False
        start = -address % alignment
        return memory[start : start + nbytes]

    def _add(self, address: int, nbytes: int) -> None:
        first, last = address // PAGE, (address + nbytes - 1) // PAGE
        with self._lock:
            for start, size in self._ranges.items():
                if start // PAGE <= last and first <= (start + size - 1) // PAGE:
                    raise InvalidArgumentError(
                        f"{nbytes:,} bytes at {address:#x} share pages with {size:,} bytes at "
                        f"{start:#x}, which are registered already.",
                        hint="Register one array that holds both, or leave the first context.",
                    )
            with check("registration of host memory", "host", nbytes):
                self._registrar.register(address, nbytes)
            self._ranges[address] = nbytes

    def _end(self, address: int, _pages: mmap.mmap) -> None:
        self._remove(address)

    def _remove(self, address: int) -> None:
        with check("end of a registration", "host"):
            self._settle()
        with self._lock, check("end of a registration", "host"):
            del self._ranges[address]
            self._registrar.unregister(address)


def _map(nbytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        total, free = host_memory()
        raise out_of_memory(nbytes, free, total, "host") from error
