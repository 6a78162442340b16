"""The rows that any backend can run."""

from __future__ import annotations

from sagellm_backend.bench.rows import attention, calls, fused, kv, linear

__all__ = ["attention", "calls", "fused", "kv", "linear"]
