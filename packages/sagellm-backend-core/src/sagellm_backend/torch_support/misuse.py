"""Misuse that torch would accept in silence: what every kernel asks of its arguments."""

from __future__ import annotations

import math
from typing import Any

import torch

from sagellm_backend.ops.statics import positive_real

FLOATING = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""The dtypes that operations are computed in."""

INDEX = frozenset({torch.int32, torch.int64})
"""The dtypes of ids, positions and slots."""


class MisuseError(ValueError):
    """Arguments do not fit the operation.

    Raised without a message where the operation table can say what is wrong, from shapes and dtypes
    alone; never seen by a caller, who gets :class:`InvalidArgumentError`.
    """


def bad_eps(eps: Any) -> bool:
    """Whether ``eps`` is anything but a finite number above 0."""
    if type(eps) is float:
        return not 0.0 < eps < math.inf
    return positive_real(eps) is not None
