"""Digests: one form of JSON data that has one SHA-256, wherever and whenever it is computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

VOLATILE = ("available_memory_bytes",)
"""Fields of a descriptor that differ from run to run and say nothing of what is claimed."""


def canonical(data: Any) -> bytes:
    """JSON data as bytes: keys sorted, no blanks, ASCII, numbers in their shortest form.

    Raises ``ValueError`` for NaN and infinity, which JSON has not.
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def digest_of(data: Any) -> str:
    """``sha256:`` and the digest of :func:`canonical`."""
    return digest_bytes(canonical(data))


def digest_bytes(content: bytes) -> str:
    """``sha256:`` and the digest of these bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def report_digest(report: Mapping[str, Any]) -> str:
    """The digest of a report: of all its fields but ``digest``."""
    return digest_of({name: value for name, value in report.items() if name != "digest"})


def plan_digest(report: Mapping[str, Any], ids: Sequence[str]) -> str:
    """The digest of a report's plan of these cases, as :attr:`Plan.digest` has computed it."""
    return digest_of(
        {
            "suite": report["suite"]["version"],
            "profiles": report["request"]["profiles"],
            "depth": report["request"]["depth"],
            "cases": list(ids),
            "not_applicable": [[item["id"], item["reason"]] for item in report["not_applicable"]],
        }
    )


def descriptor_digest(descriptor: Mapping[str, Any] | None) -> str:
    """The digest of what a provider claims, without the fields in :data:`VOLATILE`."""
    claims = (descriptor or {}).items()
    return digest_of({name: value for name, value in claims if name not in VOLATILE})
