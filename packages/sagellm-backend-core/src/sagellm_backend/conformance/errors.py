"""Failures of the suite itself, as against those of the provider that it examines."""

from __future__ import annotations

from sagellm_backend.errors import BackendError


class HarnessError(BackendError, RuntimeError):
    """The suite could not do its work: a module of it does not load, a report cannot be written.

    It says nothing about the provider.
    """
