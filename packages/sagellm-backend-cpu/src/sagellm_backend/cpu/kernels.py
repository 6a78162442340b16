"""The operations that this package computes otherwise than plain torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_backend.cpu import (
    activation,
    attention,
    kv_write,
    norm,
    quantised,
    rope,
    sampling,
)

KERNELS: dict[str, Callable[..., Any]] = {
    "rms_norm": norm.rms_norm,
    "add_rms_norm": norm.add_rms_norm,
    "rope": rope.rope,
    "kv_write": kv_write.kv_write,
    "silu_and_mul": activation.silu_and_mul,
    "greedy_sample": sampling.greedy_sample,
    "attention": attention.attention,
    **quantised.KERNELS,
}
