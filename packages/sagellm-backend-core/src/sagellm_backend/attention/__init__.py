"""Attention: what one batch step knows of its sequences, and what engines ask about backends."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sagellm_backend.attention.metadata import AttentionMetadata as AttentionMetadata

_HOMES = {
    "sagellm_backend.attention.availability": (
        "get_attention_backend_availability",
        "is_attention_backend_available",
    ),
    "sagellm_backend.attention.diagnostics": (
        "get_attention_diagnostics",
        "record_attention_call",
        "record_attention_fallback",
        "reset_attention_diagnostics",
    ),
    "sagellm_backend.attention.paged_metadata": (
        "PagedAttentionMetadata",
        "PagedAttentionMetadataBuilder",
    ),
    "sagellm_backend.torch_support.paged_attention": ("PagedAttentionBackend",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "AttentionMetadata"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
