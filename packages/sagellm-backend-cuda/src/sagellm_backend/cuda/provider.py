"""Builders of the ``cuda`` and ``dcu`` backends. This release has no provider behind them."""

from __future__ import annotations

from typing import Any, NoReturn

from sagellm_backend.cuda.spec import NEXT_STEP, NO_PROVIDER
from sagellm_backend.errors import CapabilityError


def create_cuda_backend(config: Any = None) -> NoReturn:  # noqa: ARG001 - v0.1's signature
    """Refuse with :class:`CapabilityError`."""
    raise CapabilityError("provider", "cuda", f"{NO_PROVIDER}.", hint=NEXT_STEP)


def create_dcu_backend(config: Any = None) -> NoReturn:  # noqa: ARG001 - v0.1's signature
    """Refuse with :class:`CapabilityError`."""
    raise CapabilityError("provider", "dcu", f"{NO_PROVIDER}.", hint=NEXT_STEP)
