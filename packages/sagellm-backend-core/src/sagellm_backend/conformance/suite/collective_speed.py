"""Speed of collectives: large sums, and the time that a small one takes at least."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.collectives import Communicator
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.groups import GROUP, join
from sagellm_backend.conformance.speed import GIGA, Array, Meter, Work, same
from sagellm_backend.conformance.workloads import streaming
from sagellm_backend.dtypes import DType

_ATTEMPTS = 6
_RUNS = 4
_MANY_RUNS = 20


def _sums(capability: CapabilityDescriptor) -> str | None:
    if "all_reduce" not in capability.supported_collectives:
        return "all_reduce is not declared"
    return None if DType.FP32 in capability.supported_dtypes else "fp32 is not declared"


class _Sum(Work):
    """An array that is added up again and again: the sum of all ranks, and then its multiples.

    Every rank makes equally many runs. Powers of two times small integers are exact in fp32.
    """

    def __init__(self, exam: Exam, group: Communicator, size: int, amount: float) -> None:
        super().__init__(exam)
        self.amount = amount
        self._group = group
        self._parts = exam.rng.integers(-100, 100, (exam.world, size)).astype(np.float32)

    def begin(self) -> Any:
        made = self.provider.from_numpy(self._parts[self.exam.rank])
        self._group.barrier()
        return made

    def step(self, state: Any, index: int) -> Any:
        return self._group.all_reduce(state)

    def look(self, state: Any) -> Array:
        return self.provider.to_numpy(state)

    def check(self, part: Array, runs: int) -> None:
        total = self._parts.sum(axis=0) * np.float32(self.exam.world ** (runs - 1))
        same(self.exam, part + np.float32(0), total, f"the last of {runs} sums")


def _measure(exam: Exam, work: Work, runs: int) -> float:
    """The highest rate of as many attempts on every rank."""
    meter = Meter(work, runs)
    for _ in range(_ATTEMPTS):
        meter.attempt()
    return meter.rate


@case("collective", requires=GROUP, world=2, needs=_sums, depth="standard")
def speed_of_all_reduce(exam: Exam) -> None:
    """GB/s of a large array summed over two ranks, its bytes once, against a copy in the device.

    Kills a sum that is not made again when the array is the same.
    """
    size = 1 << 20
    rate = _measure(exam, _Sum(exam, join(exam), size, 4.0 * size), _RUNS)
    exam.measure("gb_per_s", rate / GIGA)
    for limit in streaming(exam):
        exam.measure("gb_per_s_limit", limit.rate / GIGA)


@case("collective", requires=GROUP, world=2, needs=_sums, depth="standard")
def latency_of_all_reduce(exam: Exam) -> None:
    """Microseconds that the sum of one number over two ranks takes.

    Kills a sum that is not made again when the array is the same.
    """
    rate = _measure(exam, _Sum(exam, join(exam), 1, 1.0), _MANY_RUNS)
    exam.measure("latency_us", 1e6 / rate)
