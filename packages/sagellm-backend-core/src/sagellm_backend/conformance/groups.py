"""Groups of processes in cases: joining one, and comparing what its ranks have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.collectives import Communicator
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType

GROUP = (Feature.COLLECTIVE,)
TIMEOUT_S = 30.0


def floats(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The declared floating dtypes that reductions are defined for."""
    wanted = (DType.FP32, DType.FP16, DType.BF16)
    return tuple(dtype for dtype in wanted if dtype in capability.supported_dtypes)


def join(
    exam: Exam, timeout_s: float = TIMEOUT_S, provider: BackendProvider | None = None
) -> Communicator:
    """The group of all ranks of the case.

    A provider closes the first group that it joined: one of its own for each closes them all when
    the case fails.
    """
    made = (provider or exam.provider).communicator(
        exam.rank, exam.world, exam.init_method, timeout_s
    )
    exam.check(
        (made.rank, made.world_size) == (exam.rank, exam.world),
        f"Rank {exam.rank} of {exam.world} is {made.rank} of {made.world_size} in its group.",
    )
    return made


def bits(array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """The bits of an array, in a type that every provider can send."""
    raw = np.ascontiguousarray(array).view(np.uint8)
    return np.frombuffer(raw.tobytes() + bytes(-raw.nbytes % 4), np.int32)


def same_everywhere(exam: Exam, group: Communicator, array: npt.NDArray[Any]) -> None:
    """Fail unless every rank has these bits."""
    mine = exam.provider.from_numpy(bits(array))
    gathered = exam.provider.to_numpy(group.all_gather(mine))
    for rank in range(group.world_size):
        exam.equal_bits(gathered[rank], gathered[group.rank], f"Bits of rank {rank} and our own")
