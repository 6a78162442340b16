"""Kernels: arguments that are parts of larger arrays, as those of one product for several uses are."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.conformance.calls import claims, small_cases
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.operations import judge
from sagellm_backend.errors import CapabilityError


@case("kernels", params={"claim": claims})
def takes_slices(exam: Exam) -> None:
    """An argument may be a slice of rows and columns of a larger array.

    Caches and what is written in place stay whole. Kills a kernel that takes what it is given for
    contiguous, or for the beginning of its memory.
    """
    operation, dtype = exam["claim"].operation, exam["claim"].dtype
    for arguments in small_cases(exam, operation, dtype):
        try:
            kernel = exam.provider.get_kernel(operation.name, **operation.statics_of(arguments))
        except CapabilityError:
            exam.measure("refused", 1)
            continue
        parts = {
            name: _part_of_larger(exam, value)
            for name, value in arguments.items()
            if name not in operation.mutates and isinstance(value, np.ndarray) and value.ndim < 4
        }

        def sliced(*, _kernel: Any = kernel, _parts: Any = parts, **native: Any) -> Any:
            return _kernel(**{**native, **_parts})

        flushes = dtype in exam.capability.flush_subnormals
        found = judge(exam.provider, operation, sliced, arguments, dtype, flushes=flushes)
        exam.check(found.passed, f"{operation.name} of slices: {found.detail}.")


def _part_of_larger(exam: Exam, array: Any) -> Any:
    """A native array like ``array``, cut out of one that is larger on all sides."""
    # What lies around is repeated from the edge: ids and positions stay such as may be given.
    larger = exam.provider.from_numpy(np.pad(array, [(2, 1)] * array.ndim, mode="edge"))
    return larger[tuple(slice(2, 2 + size) for size in array.shape)] if array.ndim else larger
