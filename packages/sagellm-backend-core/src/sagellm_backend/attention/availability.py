"""Which attention backends an engine can ask a torch provider for, by name."""

from __future__ import annotations

from typing import Any

from sagellm_backend import frameworks
from sagellm_backend.checks import shown
from sagellm_backend.errors import InvalidArgumentError

ENGINE = "engine"
"""The default: the engine computes attention itself, and keeps keys and values itself."""

PAGED = "paged"
"""Attention over a paged cache, in the published engine's calling convention."""

BACKENDS = (ENGINE, PAGED)
"""The names that ``provider.get_attention_backend(name)`` takes."""


def get_attention_backend_availability(name: str | None = None) -> dict[str, dict[str, Any]]:
    """By name, whether a backend is ``registered`` and ``selectable``, and why it is not.

    Of one backend if ``name`` is given, of all otherwise; ``unavailable_reason`` is ``None`` for
    what is selectable. No framework is imported. Raises :class:`InvalidArgumentError` for a name
    that no backend has.
    """
    names = BACKENDS if name is None else (known(name),)
    return {item: _availability(item) for item in names}


def is_attention_backend_available(name: object) -> bool:
    """Whether a backend of this name exists and is selectable."""
    return isinstance(name, str) and name in BACKENDS and bool(_availability(name)["selectable"])


def known(name: Any) -> str:
    """``name``, or :class:`InvalidArgumentError` if no attention backend has it."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise InvalidArgumentError(
            f"No attention backend is named {shown(name)}.",
            hint=f"There are {', '.join(BACKENDS)}.",
        )
    return name


def _availability(name: str) -> dict[str, Any]:
    needs_torch = name == PAGED and not frameworks.is_installed("torch")
    reason = "torch is not installed" if needs_torch else None
    return {"registered": True, "selectable": reason is None, "unavailable_reason": reason}
