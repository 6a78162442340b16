"""Static arguments: what is known of a call before its arrays exist.

Implementations are chosen by statics (dtype, head size, window, …), so that what cannot run is
refused when a kernel is resolved and not when it is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Rule = Callable[[Any], "str | None"]
"""Says in words what was wanted when a value is not that; ``None`` when it is."""


@dataclass(frozen=True)
class Static:
    """One static name of an operation.

    ``rule`` judges its value. ``source`` says where a call shows it: the name of a dimension in the
    shape specs, a function of the call's arguments, or ``None`` for the argument of the same name.
    """

    rule: Rule
    source: str | Callable[[Mapping[str, Any]], Any] | None = None


def positive_int(value: Any) -> str | None:
    """Accept an integer above 0."""
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0
    return None if good else "a positive integer"


def positive_real(value: Any) -> str | None:
    """Accept a finite number above 0."""
    good = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    # Compared, not converted: an integer may be larger than any float.
    return None if good and 0 < value < math.inf else "a positive finite number"


def boolean(value: Any) -> str | None:
    """Accept True and False."""
    return None if isinstance(value, bool) else "True or False"


def choice(*words: str) -> Rule:
    """Accept one of ``words``."""

    def rule(value: Any) -> str | None:
        return None if isinstance(value, str) and value in words else " or ".join(map(repr, words))

    return rule


def optional(inner: Rule) -> Rule:
    """Accept ``None`` too."""

    def rule(value: Any) -> str | None:
        wanted = None if value is None else inner(value)
        return f"{wanted}, or None" if wanted else None

    return rule
