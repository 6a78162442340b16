"""The cases: one module for each group of them, found by being here."""

from __future__ import annotations

import pkgutil


def modules() -> tuple[str, ...]:
    """The full names of the suite's modules, sorted; none is imported."""
    return tuple(sorted(f"{__name__}.{item.name}" for item in pkgutil.iter_modules(__path__)))
