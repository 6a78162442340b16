"""Builder of the ``ascend`` backend. This release has no provider behind it."""

from __future__ import annotations

from typing import Any, NoReturn

from sagellm_backend.ascend.spec import NEXT_STEP, NO_PROVIDER
from sagellm_backend.errors import CapabilityError


def create_ascend_backend(config: Any = None) -> NoReturn:  # noqa: ARG001 - v0.1's signature
    """Refuse with :class:`CapabilityError`."""
    raise CapabilityError("provider", "ascend", f"{NO_PROVIDER}.", hint=NEXT_STEP)
