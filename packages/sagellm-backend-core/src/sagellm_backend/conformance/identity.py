"""Who is who in a report: the suite by its source files, the provider by its distribution."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from functools import cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from sagellm_backend.capability import CONTRACT_VERSION
from sagellm_backend.conformance.case import SUITE_VERSION
from sagellm_backend.conformance.digest import digest_bytes, digest_of

NAME = "sagellm-conformance"

_CORE = "sagellm-backend-core"
_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = ("conformance", "ops")  # an operation's cases, bounds and references stand in ops/
_OUTSIDE = (
    "charts.py",
    "diff.py",
    "files.py",
    "html.py",
    "html_parts.py",
    "junit.py",
    "zoo",
)  # decide nothing


def suite_identity() -> dict[str, Any]:
    """Name, version, contract, digest and dirtiness of this suite, as a report has them.

    The digest is of the path and the bytes of every source file that decides an outcome or a
    verdict. ``dirty`` says that these files differ from the installed wheel or from the last commit
    of their checkout, or that neither can be told.
    """
    return {
        "name": NAME,
        "version": SUITE_VERSION,
        "contract": ".".join(map(str, CONTRACT_VERSION)),
        "digest": suite_digest(),
        "dirty": _is_dirty(),
    }


def suite_digest(package: Path = _PACKAGE) -> str:
    """The digest of the suite's source files under ``package``."""
    contents = {path: (package / path).read_bytes() for path in _sources(package)}
    return digest_of({path: digest_bytes(content) for path, content in contents.items()})


@cache
def published() -> dict[str, list[str]]:
    """The digests of the suites that were released, by version: their reports can be judged."""
    text = files(__package__).joinpath("data/published.json").read_text("utf-8")
    found: dict[str, list[str]] = json.loads(text)
    return found


def provider_identity(distribution: str | None) -> dict[str, Any]:
    """Distribution, version, RECORD digest and editability of a backend, as a report has them.

    Where no such distribution is installed nothing holds the provider's files, and it counts as
    editable.
    """
    nobody = {"distribution": None, "version": None, "record_digest": None, "editable": True}
    if not distribution:
        return nobody
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return nobody
    record = found.read_text("RECORD")
    return {
        "distribution": found.metadata["Name"],
        "version": found.version,
        "record_digest": digest_bytes(record.encode()) if record else None,
        "editable": record is None or _is_editable(found),
    }


def _sources(package: Path) -> list[str]:
    found = (path for folder in _FOLDERS for path in (package / folder).rglob("*.py"))
    names = (path.relative_to(package) for path in found)
    return sorted(name.as_posix() for name in names if not set(name.parts) & set(_OUTSIDE))


def _is_editable(found: metadata.Distribution) -> bool:
    """PEP 610: an editable installation says so in ``direct_url.json``."""
    try:
        origin = json.loads(found.read_text("direct_url.json") or "{}")
    except ValueError:
        return True
    return bool(origin.get("dir_info", {}).get("editable", False))


def _is_dirty() -> bool:
    recorded = _recorded()
    names = _sources(_PACKAGE)
    if recorded:
        return any(recorded.get(name) != _record_hash(_PACKAGE / name) for name in names)
    return _differs_from_commit(names)


def _recorded() -> dict[str, str]:
    """The hashes in RECORD of core's files, if it was these very files that it installed."""
    try:
        core = metadata.distribution(_CORE)
    except metadata.PackageNotFoundError:
        return {}
    prefix = f"{_PACKAGE.name}/"
    return {
        str(file).removeprefix(prefix): file.hash.value
        for file in core.files or ()
        if file.hash
        and str(file).startswith(prefix)
        and Path(str(file.locate())).resolve().is_relative_to(_PACKAGE)
    }


def _record_hash(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _differs_from_commit(names: list[str]) -> bool:
    command = ["git", "status", "--porcelain", "--", *names]
    try:
        status = subprocess.run(  # noqa: S603 - our own file names
            command, cwd=_PACKAGE, capture_output=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    return status.returncode != 0 or bool(status.stdout)
