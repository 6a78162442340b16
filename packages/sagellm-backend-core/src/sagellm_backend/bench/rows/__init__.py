"""The rows that any backend can run."""

from __future__ import annotations

from sagellm_backend.bench.rows import attention, kv

__all__ = ["attention", "kv"]
