"""What lies between the products: norms, activations, rope and the write into the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sagellm_backend.bench.row import MICROSECONDS, Match, Row, add
from sagellm_backend.bench.session import Session
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError
from sagellm_backend.ops.rope import rope_cache

_WIDTH, _HEADS, _KV_HEADS, _HEAD = 2048, 32, 8, 64
_BLOCK, _EPS = 16, 1e-5
PLAIN = "plain torch"

Arguments = Callable[[Session, int, DType], list[Any]]
"""The host arrays, and other arguments, of a call for so many tokens."""


def _norm(session: Session, tokens: int, dtype: DType) -> list[Any]:
    normal = partial(session.normal, dtype=dtype)
    return [normal(tokens, _WIDTH), normal(_WIDTH), _EPS]


def _add_norm(session: Session, tokens: int, dtype: DType) -> list[Any]:
    normal = partial(session.normal, dtype=dtype)
    return [normal(tokens, _WIDTH), normal(tokens, _WIDTH), normal(_WIDTH), _EPS]


def _gated(session: Session, tokens: int, dtype: DType) -> list[Any]:
    return [session.normal(tokens, 4 * _WIDTH, dtype=dtype)]


def _rope(session: Session, tokens: int, dtype: DType) -> list[Any]:
    q, k = (session.normal(tokens, heads, _HEAD, dtype=dtype) for heads in (_HEADS, _KV_HEADS))
    return [q, k, np.arange(tokens), rope_cache(tokens, _HEAD).astype(np.float32)]


def _write(session: Session, tokens: int, dtype: DType) -> list[Any]:
    blocks = -(-2 * tokens // _BLOCK)
    new = [session.normal(tokens, _KV_HEADS, _HEAD, dtype=dtype) for _ in range(2)]
    caches = [np.zeros((blocks, _BLOCK, _KV_HEADS, _HEAD), dtype.numpy) for _ in range(2)]
    return [*new, *caches, session.rng.permutation(blocks * _BLOCK)[:tokens]]


def _match(session: Session, name: str, tokens: int, dtype: DType, make: Arguments) -> Match:
    provider = session.provider
    reasons = provider.supports(name, dtype=dtype)
    if reasons:
        raise CapabilityError(f"{name} in {dtype.value}", provider.name, "; ".join(reasons))
    args = [
        provider.from_numpy(item) if isinstance(item, np.ndarray) else item
        for item in make(session, 4 if session.quick else tokens, dtype)
    ]
    kernel = provider.get_kernel(name, dtype=dtype)
    beside = session.beside(PLAIN, name, *args)
    return Match(session.ours(lambda: kernel(*args)), [beside])


_ROWS: tuple[tuple[str, str, Arguments], ...] = (
    ("rms_norm", f"rows of {_WIDTH}", _norm),
    ("add_rms_norm", f"rows of {_WIDTH}", _add_norm),
    ("silu_and_mul", f"rows of 2 x {2 * _WIDTH}", _gated),
    ("rope", f"{_HEADS} and {_KV_HEADS} heads of {_HEAD}", _rope),
    ("kv_write", f"{_KV_HEADS} heads of {_HEAD}", _write),
)
for _name, _words, _make in _ROWS:
    for _tokens in (8, 512):
        for _dtype in (DType.FP32, DType.BF16):
            add(
                Row(
                    f"{_name}-{_tokens}-{_dtype.value}",
                    "between the products",
                    f"{_name} of {_tokens} tokens in {_dtype.value}, {_words}",
                    MICROSECONDS,
                    partial(_match, name=_name, tokens=_tokens, dtype=_dtype, make=_make),
                )
            )
