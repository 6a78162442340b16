"""Machine code on disk, between processes: compiled once for a processor and a version."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

_DIGEST = 32


def folder() -> Path:
    """``$XDG_CACHE_HOME/sagellm-backend/compiled``, or the same under ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "sagellm-backend" / "compiled"


def read(key: str) -> bytes | None:
    """The code kept under a key; ``None`` if there is none, or it is not what was written.

    Nor is it taken from a file of another user: it would be run with the rights of this one.
    """
    path = folder() / key
    try:
        if path.stat().st_uid != os.getuid():
            return None
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST], content[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def write(key: str, code: bytes) -> bool:
    """Keep code under a key, whole or not at all; false where this user can keep nothing.

    Processes that write the same key at once leave one of their files.
    """
    target, name = folder() / key, ""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(name).replace(target)
    except (OSError, RuntimeError):
        if name:
            Path(name).unlink(missing_ok=True)
        return False
    return True
