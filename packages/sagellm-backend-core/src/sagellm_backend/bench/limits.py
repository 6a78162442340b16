"""The limits of the machine, measured in the same run: bandwidth of memory, rate of large products."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.base import BackendProvider
from sagellm_backend.bench.memory_speed import SIZES, HostMemory
from sagellm_backend.bench.row import Bound
from sagellm_backend.dtypes import DType

DTYPES = (DType.FP32, DType.BF16, DType.FP16)
_HOST_TYPES = ("cpu", "reference")
_ATTEMPTS, _WIDTH = 9, 4096


class Limits:
    """What the memory and the multipliers of a provider's device reached.

    ``memory`` is a list of ``{bytes, read, write, copy}``, in bytes per second, ``None`` where core
    cannot measure it without a framework; ``gemm`` the operations per second by dtype. A read is the
    fastest that was found: libc's, or that of a weight by a product of one row.
    """

    def __init__(self, memory: list[dict[str, Any]], gemm: dict[str, float]) -> None:
        self.memory = memory
        self.gemm = gemm

    @classmethod
    def measure(cls, provider: BackendProvider, *, quick: bool = False) -> Limits:
        """Measure them, in a few seconds; ``quick`` in parts of one, for trying things out."""
        sizes = SIZES[:1] if quick else SIZES
        measure = _host if provider.device_type in _HOST_TYPES else _device
        memory = [measure(provider, size) for size in sizes]
        size = 64 if quick else 2048
        gemm = {dtype.value: _gemm(provider, dtype, size) for dtype in DTYPES}
        return cls(
            memory,
            {name: rate for name, rate in gemm.items() if rate is not None},
        )

    def to_dict(self) -> dict[str, Any]:
        """The limits as plain data."""
        return {"memory": self.memory, "gemm": self.gemm}

    def read(self, nbytes: float, among: float = 0.0) -> Bound | None:
        """The time in which so many bytes can be read, or where that is unknown, copied.

        ``among`` is the bytes that are read in turns, of which these are a part.
        """
        return self._memory("read", nbytes, among) or self.copy(nbytes, among)

    def copy(self, nbytes: float, among: float = 0.0) -> Bound | None:
        """The time in which so many bytes can be copied; ``among`` as for :meth:`read`."""
        return self._memory("copy", nbytes, among)

    def product(self, dtype: DType, operations: float) -> Bound | None:
        """The time of so many multiplications and additions in a large product."""
        rate = self.gemm.get(dtype.value)
        if rate is None:
            return None
        text = f"a large product, {rate / 1e9:.0f} GFLOP/s"
        return Bound("product", text, operations / rate)

    def _memory(self, kind: str, nbytes: float, among: float) -> Bound | None:
        """By the smallest area that holds half of all the bytes, or the largest there is."""
        known = [each for each in self.memory if each[kind] is not None]
        if not known:
            return None
        fit = [each for each in known if 2 * each["bytes"] >= max(nbytes, among)] or known[-1:]
        rate, size = fit[0][kind], fit[0]["bytes"]
        return Bound(kind, f"a {kind} of {size >> 20} MiB, {rate / 1e9:.1f} GB/s", nbytes / rate)


def _host(provider: BackendProvider, nbytes: int) -> dict[str, Any]:
    memory = HostMemory(nbytes)
    read, row = memory.read(), _row(provider, nbytes)
    best = max(read, row or 0.0)
    return {"bytes": nbytes, "read": best, "write": memory.write(), "copy": memory.copy()}


def _device(provider: BackendProvider, nbytes: int) -> dict[str, Any]:
    """A copy by ``embedding``, in which each row goes one place up."""
    copy = None
    if not provider.supports("embedding", dtype="fp32"):
        kernel = provider.get_kernel("embedding", dtype="fp32")
        rows = nbytes // (4 * _WIDTH)
        table = provider.empty((rows, _WIDTH), "fp32")
        ids = provider.from_numpy(np.roll(np.arange(rows), 1))
        copy = nbytes / _best(provider, lambda: kernel(ids, table))
    return {"bytes": nbytes, "read": _row(provider, nbytes), "write": None, "copy": copy}


def _row(provider: BackendProvider, nbytes: int) -> float | None:
    """Bytes per second of a weight that a product of one row reads."""
    if provider.supports("linear", dtype="fp32"):
        return None
    linear = provider.get_kernel("linear", dtype="fp32")
    x = provider.from_numpy(np.ones((1, _WIDTH), np.float32))
    weight = provider.from_numpy(np.ones((nbytes // (4 * _WIDTH), _WIDTH), np.float32))
    read = nbytes // (4 * _WIDTH) * 4 * _WIDTH
    return read / _best(provider, lambda: linear(x, weight))


def _gemm(provider: BackendProvider, dtype: DType, size: int) -> float | None:
    """Operations per second of ``linear`` with a square weight and as many rows."""
    if provider.supports("linear", dtype=dtype):
        return None
    host = np.random.default_rng(0).standard_normal((size, size), np.float32)
    x, weight = (provider.from_numpy(host.astype(dtype.numpy)) for _ in range(2))
    linear = provider.get_kernel("linear", dtype=dtype)
    return 2.0 * size**3 / _best(provider, lambda: linear(x, weight))


def _best(provider: BackendProvider, call: Callable[[], object]) -> float:
    call()
    provider.synchronize()
    found = []
    for _ in range(_ATTEMPTS):
        began = time.perf_counter()
        call()
        provider.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)
