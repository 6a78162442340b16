"""Speed of arrays on their way between host and device."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.speed import GIGA, Array, Meter, Work, report, same
from sagellm_backend.dtypes import DType

_BYTES = 8 << 20


class _Arrays(Work):
    """Large arrays of the host, no two the same: windows that begin at different places of one."""

    most = 8
    amount = float(_BYTES)

    def __init__(self, exam: Exam) -> None:
        super().__init__(exam)
        offered = exam.capability.supported_dtypes
        dtype = DType.FP32 if DType.FP32 in offered else offered[0]
        size = _BYTES // dtype.numpy.itemsize
        whole = exam.rng.integers(0, 100, size + 64 * self.most, np.int8).astype(dtype.numpy)
        self.host = [whole[64 * index :][:size] for index in range(self.most)]

    def begin(self) -> list[Any]:
        return []

    def check(self, part: Array, runs: int) -> None:
        self._compare(part, runs - 1)

    def check_all(self, state: Any, runs: int) -> None:
        for index in range(runs):
            self._compare(self.provider.to_numpy(state[index]), index)

    def _compare(self, found: Array, index: int) -> None:
        same(self.exam, found, self.host[index], f"array {index}")


class _Upload(_Arrays):
    def begin(self) -> list[Any]:
        self._before = self.provider.from_numpy(self.host[0])
        return []

    def step(self, state: Any, index: int) -> Any:
        return [*state, self.provider.from_numpy(self.host[index])]

    def look(self, state: Any) -> Array:
        return self.provider.to_numpy(state[-1])

    def look_again(self, state: Any) -> Array:
        return self.provider.to_numpy(self._before)


class _Download(_Arrays):
    def __init__(self, exam: Exam) -> None:
        super().__init__(exam)
        self._native = [exam.provider.from_numpy(array) for array in self.host]

    def step(self, state: Any, index: int) -> Any:
        return [*state, self.provider.to_numpy(self._native[index])]

    def look(self, state: Any) -> Array:
        last: Array = state[-1]
        return last

    def check_all(self, state: Any, runs: int) -> None:
        for index in range(runs):
            self._compare(state[index], index)


class _WithinHost(_Arrays):
    def __init__(self, exam: Exam) -> None:
        super().__init__(exam)
        self._target = np.zeros_like(self.host[0])

    def step(self, state: Any, index: int) -> Any:
        np.copyto(self._target, self.host[index])
        return state

    def look(self, state: Any) -> Array:
        return self._target

    def check_all(self, state: Any, runs: int) -> None:
        self._compare(self._target, runs - 1)


@case("core", depth="standard")
def speed_of_uploads(exam: Exam) -> None:
    """GB/s from the host to the device, against what one thread copies within the host.

    The bytes are read in host memory in either case: the link, or what is done to the bytes before
    they go there, makes the difference. Kills uploads that are still under way when the device says it is done.
    """
    report(exam, "gb_per_s", GIGA, [Meter(_Upload(exam)), Meter(_WithinHost(exam))])


@case("core", depth="standard")
def speed_of_downloads(exam: Exam) -> None:
    """GB/s from the device to the host, against what one thread copies within the host.

    The bytes are written in host memory in either case, here into memory that is new. Kills a download that gives an earlier one again.
    """
    report(exam, "gb_per_s", GIGA, [Meter(_Download(exam)), Meter(_WithinHost(exam))])
