"""Work that takes a device a while, and whose result is known exactly."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType
from sagellm_backend.streams import Stream

Array = np.ndarray[Any, Any]

_STEP_S = 0.003
"""How long one product should take at least, so that ten of them outlast any call's overhead."""

_STEPS = 10
_MOST_STEPS = 1000
_SIZES = (128, 256, 512, 1024, 2048, 4096)


def computes(capability: CapabilityDescriptor) -> str | None:
    """Why there is nothing to give to a stream: no matrix product is declared."""
    return None if "matmul" in capability.operations else "matmul is not declared"


class Load:
    """Products of a permutation with a matrix of small integers: exact in every dtype and order.

    The size is the smallest that keeps this device busy for a few milliseconds a product; ``steps``
    is how many are given where nothing else is said.
    """

    def __init__(self, exam: Exam) -> None:
        self._exam, self._provider, self.steps = exam, exam.provider, _STEPS
        offered = exam.capability.operations["matmul"]
        self.dtype = DType.FP32 if DType.FP32 in offered else offered[0]
        self._matmul = exam.provider.get_kernel("matmul", dtype=self.dtype)
        for size in _SIZES:
            self._prepare(size)
            # The least of three: one that was interrupted would make the work too short.
            if min(self._seconds() for _ in range(3)) >= _STEP_S:
                break

    def run(self, steps: int | None = None, matrix: Any = None) -> Any:
        """Give ``steps`` products to the current stream, each of the result before; the last one."""
        result = self.matrix if matrix is None else matrix
        for _ in range(steps or self.steps):
            result = self._matmul(self.permutation, result)
        return result

    def on(self, stream: Stream, steps: int | None = None, matrix: Any = None) -> Any:
        """:meth:`run` on ``stream``."""
        with stream:
            return self.run(steps, matrix)

    def lengthen(self, took_ms: float) -> None:
        """Give more steps from now on, if all of them took less than they are meant to.

        On a machine that was busy with other work when the size was chosen, it is too small.
        """
        wanted = 1e3 * _STEP_S * _STEPS
        if took_ms < wanted:
            self.steps = min(_MOST_STEPS, math.ceil(self.steps * wanted / max(took_ms, 0.01)))

    def check(self, result: Any, steps: int | None = None, what: str = "the result") -> None:
        """Fail unless ``result`` is that of so many steps, bit for bit."""
        rows = np.arange(len(self._order))
        for _ in range(steps or self.steps):
            rows = rows[self._order]
        self._exam.equal_bits(self._provider.to_numpy(result), self._host[rows], what)

    def _seconds(self) -> float:
        start = time.perf_counter()
        self.run(1)
        self._provider.synchronize()
        return time.perf_counter() - start

    def _prepare(self, size: int) -> None:
        rng, dtype = self._exam.rng, self.dtype.numpy
        self._order = rng.permutation(size)
        self._host: Array = rng.integers(0, 8, (size, size)).astype(dtype)
        self.permutation = self._provider.from_numpy(np.eye(size, dtype=dtype)[self._order])
        self.matrix = self._provider.from_numpy(self._host)
        self._provider.synchronize()
