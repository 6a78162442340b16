"""Linear over weights in FRACTAL_NZ, the format in which the 310P multiplies: a copy of each weight,
made once and kept with it.

A copy that the caller has cast himself (``npu_format_cast(weight, 29)``) is taken as it is, and costs
nothing more. None of this has run on an NPU.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from sagellm_backend.ascend import npu
from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.memory import MemoryLedger
from sagellm_backend.torch_support import kernels as plain

FRACTAL_NZ = 29
TILE = 16
SPARE = 4
"""Copies leave one part in so many of the memory free."""


class NZLinear:
    """The operation ``linear`` with a cache of weights in FRACTAL_NZ. Thread-safe.

    A weight is cast at its second use, once, while the caller waits for the device; its copy serves
    every stream. It goes when the weight dies, when torch counts a write to it (its version), when
    its memory or shape changes, and at :meth:`clear`. Writes that torch does not count, through
    ``.data`` or another library, are seen only after :meth:`clear`. Weights in fp32, of one row or
    column, that are not contiguous, made in inference mode or in need of a gradient stay as they
    are.

    Copies are reserved in ``ledger()``; where they would leave less than a quarter of its limit, or
    of the device's memory (``memory()`` gives total and free bytes), the weight stays as it is.
    """

    def __init__(
        self, ledger: Callable[[], MemoryLedger], memory: Callable[[], tuple[int, int]]
    ) -> None:
        self._ledger, self._memory = ledger, memory
        self._entries: dict[int, _Entry] = {}
        self._casting = threading.Lock()
        self._casts = True

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias``, over the copy where there is one."""
        return plain.linear(x, self._best(weight), bias)

    def clear(self, *, for_good: bool = False) -> None:
        """Drop every copy; weights are cast anew at their second use, unless ``for_good``."""
        self._casts = not for_good
        for key in list(self._entries):
            _drop(self._entries, key)

    def _best(self, weight: Tensor) -> Tensor:
        if weight.requires_grad and torch.is_grad_enabled():
            return weight
        entry = self._entries.get(id(weight))
        if entry is None:
            if self._casts and _is_castable(weight):
                self._entries[id(weight)] = _Entry(weight, self._entries)
            return weight
        if not entry.describes(weight):
            _drop(self._entries, id(weight))
            return weight
        if entry.copy is None and entry.wanted:
            self._try_casting(entry, weight)
        copy = entry.copy  # which another thread may drop
        return weight if copy is None else copy

    def _try_casting(self, entry: _Entry, weight: Tensor) -> None:
        # A thread that comes while another casts takes the weight as it is, and never waits.
        if npu.is_current_stream_capturing() or not self._casting.acquire(blocking=False):
            return
        try:
            if entry.copy is None:
                self._cast(entry, weight)
        finally:
            self._casting.release()

    def _cast(self, entry: _Entry, weight: Tensor) -> None:
        entry.wanted = False
        if torch.ops.npu.get_npu_format(weight) == FRACTAL_NZ:
            return
        ledger, nbytes = self._ledger(), _nbytes(weight)
        if not self._has_room(ledger, nbytes):
            return
        try:
            ledger.reserve(nbytes)
        except OutOfMemoryError:
            return
        entry.charges.append((ledger, nbytes))
        try:
            with torch.no_grad():
                copy = torch.ops.npu.npu_format_cast(weight.detach(), FRACTAL_NZ)
            npu.current_stream(weight.device).synchronize()
        except torch.OutOfMemoryError:
            entry.release()
            return
        except BaseException:
            entry.release()
            raise
        entry.copy = copy
        # What was written or dropped in the meantime did not see this copy.
        if self._entries.get(id(weight)) is not entry or not entry.describes(weight):
            entry.release()

    def _has_room(self, ledger: MemoryLedger, nbytes: int) -> bool:
        total, free = self._memory()
        own = ledger.stats(device_total=total, device_free=free)
        limit, held = own["limit_bytes"], own["reserved_bytes"]
        return nbytes + limit // SPARE <= limit - held and nbytes + total // SPARE <= free


class _Entry:
    """What is known of one weight. Holds neither the tensor nor its memory."""

    def __init__(self, weight: Tensor, entries: dict[int, _Entry]) -> None:
        key = id(weight)
        self.copy: Tensor | None = None
        self.wanted = True
        self.charges: list[tuple[MemoryLedger, int]] = []
        self._weight = weakref.ref(weight, lambda _: _drop(entries, key))
        self._seen = _identity(weight)

    def describes(self, weight: Tensor) -> bool:
        """Whether ``weight`` is the one that was seen, as it was then."""
        return self._weight() is weight and self._seen == _identity(weight)

    def release(self) -> None:
        """Give copy and reservation back, once, whichever thread comes first."""
        self.copy = None
        try:
            ledger, nbytes = self.charges.pop()
        except IndexError:
            return
        ledger.unreserve(nbytes)


def _identity(weight: Tensor) -> tuple[object, ...]:
    version = weight._version  # noqa: SLF001 - torch has no other name for it
    return version, weight.data_ptr(), weight.shape, weight.dtype, weight.is_contiguous()


def _is_castable(weight: Tensor) -> bool:
    return (
        type(weight) in (Tensor, Parameter)
        and weight.dtype is torch.float16
        and weight.dim() == 2
        and min(weight.shape) > 1
        and weight.is_contiguous()
        and not weight.is_inference()
    )


def _nbytes(weight: Tensor) -> int:
    """The bytes of a copy, whose sides are filled up to tiles."""
    rows, columns = (size + -size % TILE for size in weight.shape)
    return rows * columns * weight.itemsize


def _drop(entries: dict[int, _Entry], key: int) -> None:
    # Garbage collection calls this in the midst of anything, so it takes no lock of ours.
    entry = entries.pop(key, None)
    if entry is not None:
        entry.release()
