"""The operations that this package computes otherwise than plain torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_backend.cpu import attention, kv_write, norm, quantised, rope

KERNELS: dict[str, Callable[..., Any]] = {
    "rms_norm": norm.rms_norm,
    "add_rms_norm": norm.add_rms_norm,
    "rope": rope.rope,
    "kv_write": kv_write.kv_write,
    "attention": attention.attention,
    **quantised.KERNELS,
}
