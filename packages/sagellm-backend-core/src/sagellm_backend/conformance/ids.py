"""Case ids: words chosen by the suite, never reprs or paths, so that they stay what they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any

from sagellm_backend.conformance.errors import HarnessError

_WORD = re.compile(r"[A-Za-z0-9_.,:+-]+")


def word_of(name: str, value: Any) -> str:
    """A value of case ``name`` as it stands in an id.

    An enum by its value, a tuple joined by ``x``, an object by its ``label`` or ``name``, else by
    ``str()``. Raises :class:`HarnessError` for what has no such word.
    """
    if isinstance(value, Enum):
        word = value.value
    elif isinstance(value, tuple):
        word = "x".join(map(str, value)) or "()"
    else:
        word = getattr(value, "label", None) or getattr(value, "name", None) or value
    if not isinstance(word, (str, int, float)) or not _WORD.fullmatch(str(word)):
        raise HarnessError(
            f"Case {name} has a value that cannot stand in an id: {type(value).__name__} {word!r}.",
            hint="Use words, numbers, enums, or objects with a label or name.",
        )
    return str(word)


def require_unique(ids: Sequence[str]) -> None:
    """Raise :class:`HarnessError` if an id is there twice."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise HarnessError(f"The case id {name} is taken twice.")
        seen.add(name)
