"""Builder of the ``kunlun`` backend. This release has no provider behind it."""

from __future__ import annotations

from typing import Any, NoReturn

from sagellm_backend.errors import CapabilityError
from sagellm_backend.kunlun.spec import NEXT_STEP, NO_PROVIDER


def create_kunlun_backend(config: Any = None) -> NoReturn:  # noqa: ARG001 - v0.1's signature
    """Refuse with :class:`CapabilityError`."""
    raise CapabilityError("provider", "kunlun", f"{NO_PROVIDER}.", hint=NEXT_STEP)
