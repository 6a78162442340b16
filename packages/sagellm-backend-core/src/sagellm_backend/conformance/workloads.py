"""Work of operations whose result is known exactly after any number of runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.speed import Array, Meter, Work, same, sized
from sagellm_backend.dtypes import DType

_SERVED = (DType.BF16, DType.FP16, DType.FP32)
_ROW_BYTES = 4096


def served(operation: str) -> Any:
    """The dtype that models are served in: the first of bf16, fp16, fp32 that is declared."""

    def dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
        offered = capability.operations.get(operation, ())
        return tuple(dtype for dtype in _SERVED if dtype in offered)[:1]

    return dtypes


def widest(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The dtype whose rows are copied fastest: the widest that ``embedding`` is declared for."""
    offered = capability.operations.get("embedding", ())
    return tuple(dtype for dtype in reversed(_SERVED) if dtype in offered)[:1]


def streaming(exam: Exam) -> list[Meter[Copy]]:
    """The limit of work that is bound by memory: bytes per second of a large copy in the device.

    A copy computes nothing, and reads and writes one byte after the other. Work that only reads can
    exceed it. There is none where ``embedding``, which copies, is not declared.
    """
    dtypes = widest(exam.capability)
    return [sized(exam, lambda nbytes: Copy(exam, dtypes[0], nbytes))] if dtypes else []


class Copy(Work):
    """All rows of a table, gathered in an order: each byte is read once and written once.

    The order is a random one, or that of neighbours: each row but the first goes one place up, so
    that each run changes the table.
    """

    def __init__(
        self,
        exam: Exam,
        dtype: DType,
        nbytes: int,
        *,
        row_bytes: int = _ROW_BYTES,
        shuffle: bool = False,
    ) -> None:
        super().__init__(exam)
        rows = max(nbytes // row_bytes, 1)
        self.amount = 2.0 * rows * row_bytes
        self._order = exam.rng.permutation(rows) if shuffle else np.roll(np.arange(rows), 1)
        shape = (rows, row_bytes // dtype.numpy.itemsize)
        self._host = exam.rng.integers(-128, 128, shape, np.int8).astype(dtype.numpy)
        self._kernel = exam.provider.get_kernel("embedding", dtype=dtype)
        self._picked = exam.rng.integers(0, rows, 8)
        self._table, self._ids, self._some = map(
            exam.provider.from_numpy, (self._host, self._order, self._picked)
        )

    def begin(self) -> Any:
        return self._table

    def step(self, state: Any, index: int) -> Any:
        return self._kernel(self._ids, state)

    def look(self, state: Any) -> Array:
        return self.provider.to_numpy(self._kernel(self._some, state))

    def check(self, part: Array, runs: int) -> None:
        self._compare(part, shuffled(self._order, runs)[self._picked], runs)

    def check_all(self, state: Any, runs: int) -> None:
        self._compare(self.provider.to_numpy(state), shuffled(self._order, runs), runs)

    def _compare(self, found: Array, rows: Array, runs: int) -> None:
        same(self.exam, found, self._host[rows], f"rows that were gathered {runs} times")


class Calls(Copy):
    """Four rows of 16 bytes, gathered: what counts are the calls."""

    most = 1024

    def __init__(self, exam: Exam, dtype: DType) -> None:
        super().__init__(exam, dtype, 64, row_bytes=16)
        self.amount = 1.0


class Linear(Work):
    """Small integers times a permutation as the weight: their columns in another order, exactly.

    ``amount`` is the arithmetic: two operations for each weight and row.
    """

    def __init__(self, exam: Exam, dtype: DType, rows: int, size: int) -> None:
        super().__init__(exam)
        self.amount = 2.0 * rows * size * size
        self.size = size
        self._order = exam.rng.permutation(size)
        self._host = exam.rng.integers(-8, 8, (rows, size)).astype(dtype.numpy)
        self._kernel = exam.provider.get_kernel("linear", dtype=dtype)
        weight = np.eye(size, dtype=dtype.numpy)[self._order]
        self._input, self._weight = map(exam.provider.from_numpy, (self._host, weight))
        self._part = Rows(exam, dtype, rows)

    def begin(self) -> Any:
        return self._input

    def step(self, state: Any, index: int) -> Any:
        return self._kernel(state, self._weight)

    def look(self, state: Any) -> Array:
        return self._part(state)

    def check(self, part: Array, runs: int) -> None:
        self._compare(part, self._host[self._part.picked], runs)

    def check_all(self, state: Any, runs: int) -> None:
        self._compare(self.provider.to_numpy(state), self._host, runs)

    def _compare(self, found: Array, rows: Array, runs: int) -> None:
        wanted = rows[:, shuffled(self._order, runs)]
        # Adding 0 takes the sign from a zero, which is nobody's business.
        same(self.exam, found + found.dtype.type(0), wanted, f"the last of {runs} products")


class Decode(Linear):
    """A product of few rows, which takes as long as the weight takes to be read: its bytes count."""

    def __init__(self, exam: Exam, dtype: DType, rows: int, nbytes: int) -> None:
        itemsize = dtype.numpy.itemsize
        size = math.isqrt(nbytes // itemsize) // 64 * 64
        super().__init__(exam, dtype, rows, size)
        self.amount = float(size * size * itemsize)


class Norm(Work):
    """Rows of 1 and -1, which are normalised already, times weights of 1 and -1, fresh each run."""

    most = 64

    def __init__(self, exam: Exam, dtype: DType, nbytes: int) -> None:
        super().__init__(exam)
        size = _ROW_BYTES // dtype.numpy.itemsize
        self.amount = 2.0 * nbytes
        self._host = self._signs(nbytes // _ROW_BYTES, size).astype(dtype.numpy)
        self._signs_of = self._signs(self.most, size)
        self._kernel = exam.provider.get_kernel("rms_norm", dtype=dtype)
        self._input = exam.provider.from_numpy(self._host)
        self._weights = [
            exam.provider.from_numpy(row) for row in self._signs_of.astype(dtype.numpy)
        ]
        self._part = Rows(exam, dtype, len(self._host))

    def begin(self) -> Any:
        return self._input

    def step(self, state: Any, index: int) -> Any:
        return self._kernel(state, self._weights[index], 1e-6)

    def look(self, state: Any) -> Array:
        return self._part(state)

    def check(self, part: Array, runs: int) -> None:
        self._compare(part, self._host[self._part.picked], runs)

    def check_all(self, state: Any, runs: int) -> None:
        self._compare(self.provider.to_numpy(state), self._host, runs)

    def _compare(self, found: Array, rows: Array, runs: int) -> None:
        wanted = rows.astype(np.float32) * self._signs_of[:runs].prod(axis=0)
        off = ~(np.abs(found.astype(np.float32) - wanted) < 0.05)
        self.exam.check(
            not off.any(),
            f"After {runs} normalisations {int(off.sum()):,} of {off.size:,} elements are wrong.",
        )

    def _signs(self, rows: int, size: int) -> Array:
        return self.exam.rng.choice(np.array([-1, 1], np.int8), (rows, size))


class Rows:
    """Brings ``picked`` rows of a matrix to the host: eight, or all where none can be gathered."""

    def __init__(self, exam: Exam, dtype: DType, rows: int) -> None:
        self._provider = exam.provider
        gathers = dtype in exam.capability.operations.get("embedding", ())
        self.picked = exam.rng.integers(0, rows, 8) if gathers else np.arange(rows)
        self._ids = exam.provider.from_numpy(self.picked)
        self._kernel = exam.provider.get_kernel("embedding", dtype=dtype) if gathers else None

    def __call__(self, matrix: Any) -> Array:
        small = matrix if self._kernel is None else self._kernel(self._ids, matrix)
        return self._provider.to_numpy(small)


def shuffled(order: Array, times: int) -> Array:
    """Where each place is taken from when ``order`` was applied so many times."""
    places = np.arange(len(order))
    for _ in range(times):
        places = places[order]
    return places
