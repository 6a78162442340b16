"""Counts of attention calls, under the names that the published engine records and shows."""

from __future__ import annotations

import threading
from copy import deepcopy
from typing import Any

_lock = threading.Lock()
_paths: dict[str, dict[str, Any]] = {}
_latest: dict[str, Any] | None = None


def record_attention_call(
    *,
    backend_name: str,
    path_name: str,
    is_prefill: bool,
    query_shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    value_shape: tuple[int, ...],
    has_kv_cache: bool,
    has_block_tables: bool,
    has_context_lens: bool,
    num_seqs: int,
    query_tokens: int,
    max_context_len: int,
    max_blocks_per_seq: int,
) -> None:
    """Count one call of ``backend_name`` on ``path_name``. Thread-safe; nothing is checked.

    ``total_context_tokens`` adds up ``max_context_len``, as the engine's own backend does.
    """
    global _latest  # noqa: PLW0603 - one count for the process is what is asked for
    last = {
        "query_shape": tuple(query_shape),
        "key_shape": tuple(key_shape),
        "value_shape": tuple(value_shape),
        "num_seqs": num_seqs,
        "max_context_len": max_context_len,
        "max_blocks_per_seq": max_blocks_per_seq,
        "has_kv_cache": has_kv_cache,
        "has_block_tables": has_block_tables,
        "has_context_lens": has_context_lens,
    }
    counts = {
        "total_calls": 1,
        "prefill_calls": int(is_prefill),
        "decode_calls": int(not is_prefill),
        "kv_cache_calls": int(has_kv_cache),
        "block_table_calls": int(has_block_tables),
        "context_lens_calls": int(has_context_lens),
        "total_query_tokens": query_tokens,
        "total_context_tokens": max_context_len,
    }
    with _lock:
        path = _path(backend_name, path_name)
        for name, count in counts.items():
            path[name] += count
        path.update({f"last_{name}": value for name, value in last.items()})
        _latest = {
            "backend_name": backend_name,
            "path_name": path_name,
            "is_prefill": is_prefill,
            "query_tokens": query_tokens,
            **last,
        }


def record_attention_fallback(*, backend_name: str, path_name: str, reason: str) -> None:
    """Count one time that ``path_name`` gave way for ``reason``. Thread-safe."""
    with _lock:
        reasons = _path(backend_name, path_name)["fallback_reasons"]
        reasons[reason] = reasons.get(reason, 0) + 1


def get_attention_diagnostics() -> dict[str, dict[str, Any]]:
    """The counts of this process by ``backend:path``, and under ``_meta`` the ``latest_call``.

    A copy, which is the caller's. Thread-safe.
    """
    with _lock:
        return {"_meta": {"latest_call": deepcopy(_latest)}, **deepcopy(_paths)}


def reset_attention_diagnostics() -> None:
    """Forget every count. Thread-safe."""
    global _latest  # noqa: PLW0603
    with _lock:
        _paths.clear()
        _latest = None


def _path(backend_name: str, path_name: str) -> dict[str, Any]:
    key = f"{backend_name}:{path_name}"
    if key not in _paths:
        _paths[key] = {
            "backend_name": backend_name,
            "path_name": path_name,
            "total_calls": 0,
            "prefill_calls": 0,
            "decode_calls": 0,
            "kv_cache_calls": 0,
            "block_table_calls": 0,
            "context_lens_calls": 0,
            "total_query_tokens": 0,
            "total_context_tokens": 0,
            "last_query_shape": None,
            "last_key_shape": None,
            "last_value_shape": None,
            "last_num_seqs": 0,
            "last_max_context_len": 0,
            "last_max_blocks_per_seq": 0,
            "last_has_kv_cache": False,
            "last_has_block_tables": False,
            "last_has_context_lens": False,
            "fallback_reasons": {},
        }
    return _paths[key]
