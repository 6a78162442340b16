"""Whether the files of sagellm_backend are ours and whole.

Another distribution, isagellm-backend, installs a package of the same name. The two overwrite one
another's files, and uninstalling either one deletes files of both; pip says nothing. This module
lies beside the package, so that it can speak where the package cannot be imported.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

FOREIGN = "isagellm-backend"
"""The distribution that cannot be installed beside ours."""

_OURS = "sagellm-backend-"
_CORE = "sagellm-backend-core"
_AGAIN = "pip install --force-reinstall --no-deps"


def require_whole() -> None:
    """Raise :class:`~sagellm_backend.errors.PackageClashError` where the other package lies in ours.

    Looks at the names in one folder only, which takes some ten microseconds.
    """
    if _is_beside(os.path.dirname(__file__)):  # noqa: PTH120 - pathlib costs a millisecond
        from sagellm_backend.errors import PackageClashError

        raise PackageClashError(_clash(), hint=_clash_remedy(_CORE))


def main() -> int:
    """The command ``sagellm-backend``: what is wrong with the files, or else the command itself."""
    found = problem()
    if found is None:
        status: int = import_module("sagellm_backend.cli").main()
        return status
    what, remedy = found
    if "--json" in sys.argv:
        import json

        words = {"error": "PackageClashError", "code": "unavailable", "numbers": {}}
        print(json.dumps({**words, "message": what, "hint": remedy}, indent=2))  # noqa: T201
    else:
        print(f"{what}\nHint: {remedy}", file=sys.stderr)  # noqa: T201
    return 1


def problem() -> tuple[str, str] | None:
    """What is wrong with the installed files of this package, and what to do; ``None`` if nothing.

    Reads the lists of installed files, with their hashes, of our distributions. The package itself
    is not imported.
    """
    from importlib import metadata

    installed = {_name(item): item for item in metadata.distributions()}
    ours = {name: item for name, item in sorted(installed.items()) if name.startswith(_OURS)}
    if FOREIGN in installed:
        return _clash(), _clash_remedy(" ".join(ours) or _CORE)
    for name, distribution in ours.items():
        damaged = [
            path
            for path, digest in _recorded(distribution)
            if _is_damaged(distribution, path, digest)
        ]
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            return (
                f"Files of {name} are missing or not its own: {damaged[0]}{more}. Uninstalling "
                f"{FOREIGN}, which overwrites them, leaves them so.",
                f"{_AGAIN} {' '.join(ours)}",
            )
    return None


def _is_beside(folder: str) -> bool:
    prefix = FOREIGN.replace("-", "_") + "-"
    try:
        return any(name.startswith(prefix) for name in os.listdir(folder))  # noqa: PTH208
    except OSError:  # in an archive, where nothing is overwritten
        return False


def _clash() -> str:
    return (
        f"{FOREIGN} is installed beside sagellm-backend-*: both install a package sagellm_backend, "
        "and the files of the one have overwritten files of the other."
    )


def _clash_remedy(names: str) -> str:
    return f"pip uninstall {FOREIGN}, which deletes files of ours too, and then {_AGAIN} {names}"


def _name(distribution: Any) -> str:
    return str(distribution.metadata["Name"] or "").lower().replace("_", "-")


def _recorded(distribution: Any) -> list[tuple[str, str]]:
    """The paths of our modules as installed, each with its digest, such as ``sha256=...``."""
    from csv import reader

    # Not distribution.files: from Python 3.12 on it leaves out what is missing.
    rows = reader((distribution.read_text("RECORD") or "").splitlines())
    return [(row[0], row[1]) for row in rows if row[0].startswith("sagellm_backend") and row[1]]


def _is_damaged(distribution: Any, path: str, digest: str) -> bool:
    from base64 import urlsafe_b64encode
    from hashlib import new

    mode, _, wanted = digest.partition("=")
    try:
        content = distribution.locate_file(path).read_bytes()
    except OSError:
        return True
    return urlsafe_b64encode(new(mode, content).digest()).rstrip(b"=").decode() != wanted
