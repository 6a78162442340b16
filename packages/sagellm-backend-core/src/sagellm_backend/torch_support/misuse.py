"""Misuse that torch would accept in silence: what every kernel asks of its arguments."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.errors import InvalidArgumentError
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


def check_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    """Refuse what ``kv_write`` does not take, by shapes and dtypes."""
    if not (key.shape == value.shape and key_cache.shape == value_cache.shape):
        raise MisuseError
    if key.shape[1:] != key_cache.shape[2:] or slots.shape != key.shape[:1] or key.dim() != 3:
        raise MisuseError
    if not (key.dtype is value.dtype is key_cache.dtype is value_cache.dtype):
        raise MisuseError
    if key.dtype not in FLOATING or slots.dtype not in INDEX or 0 in key.shape[1:]:
        raise MisuseError
    if not key_cache.shape[1]:
        raise MisuseError


def check_rope(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor, style: str) -> None:
    """Refuse what ``rope`` does not take, by shapes and dtypes."""
    if not (q.dim() == k.dim() == 3 and q.shape[::2] == k.shape[::2] and q.dtype is k.dtype):
        raise MisuseError
    if positions.shape != q.shape[:1] or positions.dtype not in INDEX:
        raise MisuseError
    if q.dtype not in FLOATING or 0 in q.shape[1:] or not k.shape[1]:
        raise MisuseError
    if cos_sin.dim() != 2 or cos_sin.dtype is not torch.float32 or not cos_sin.numel():
        raise MisuseError
    if cos_sin.shape[1] > q.shape[2] or cos_sin.shape[1] % 2 or style not in {"neox", "gptj"}:
        raise MisuseError


def require_one_device(operation: str, first: Tensor, *others: Tensor) -> None:
    """Refuse tensors of several devices, before anything is written or read across them."""
    for other in others:
        if other.device != first.device:
            raise InvalidArgumentError(
                f"{operation}: arrays lie on {first.device} and on {other.device}.",
                hint="Move them to one device first.",
            )
