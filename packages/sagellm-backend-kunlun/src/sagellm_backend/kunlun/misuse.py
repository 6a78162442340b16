"""Misuse that Paddle would accept in silence: what every kernel asks of its arguments."""

from __future__ import annotations

import math
from typing import Any

import paddle

from sagellm_backend.ops.statics import positive_real

FLOATING = frozenset({paddle.float32, paddle.float16, paddle.bfloat16})
"""The dtypes that operations are computed in."""

INDEX = frozenset({paddle.int32, paddle.int64})
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


def check_write(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
    """Refuse what ``kv_write`` does not take, by shapes and dtypes."""
    tokens, cache = key.shape, key_cache.shape
    if value.shape != tokens or value_cache.shape != cache or len(tokens) != 3 or len(cache) != 4:
        raise MisuseError
    if tokens[1:] != cache[2:] or slots.shape != tokens[:1] or 0 in tokens[1:] or not cache[1]:
        raise MisuseError
    if not (key.dtype == value.dtype == key_cache.dtype == value_cache.dtype):
        raise MisuseError
    if key.dtype not in FLOATING or slots.dtype not in INDEX:
        raise MisuseError


def check_rope(q: Any, k: Any, positions: Any, cos_sin: Any, style: str) -> None:
    """Refuse what ``rope`` does not take, by shapes and dtypes."""
    if not (q.ndim == k.ndim == 3 and q.shape[::2] == k.shape[::2] and q.dtype == k.dtype):
        raise MisuseError
    if positions.shape != q.shape[:1] or positions.dtype not in INDEX:
        raise MisuseError
    if q.dtype not in FLOATING or 0 in q.shape[1:] or not k.shape[1]:
        raise MisuseError
    if cos_sin.ndim != 2 or cos_sin.dtype != paddle.float32 or 0 in cos_sin.shape:
        raise MisuseError
    if cos_sin.shape[1] > q.shape[2] or cos_sin.shape[1] % 2 or style not in {"neox", "gptj"}:
        raise MisuseError


def check_logits(logits: Any) -> None:
    """Refuse what is no batch of logits."""
    if logits.ndim != 2 or not logits.shape[1] or logits.dtype not in FLOATING:
        raise MisuseError
