"""Files of a report: written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from sagellm_backend.conformance.errors import HarnessError


def write_all(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write files into ``folder``, which is made if need be, and return their paths.

    Every file is written and synchronised under a temporary name before the first one takes its own
    name, so that neither a full disk nor an interruption leaves half a file, or a new file beside
    old ones. Raises :class:`HarnessError`; the folder then holds what it held before.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            target = folder / name
            if target.is_dir():
                raise IsADirectoryError(f"{target} is a folder")
            staged.append((_stage(target, text), target))
        for temporary, target in staged:
            temporary.replace(target)
    except OSError as error:
        names = ", ".join(contents)
        raise HarnessError(
            f"Cannot write {names} to {folder}: {error.strerror or error}.",
            hint="Nothing was changed there. Free space or choose another folder with --out.",
        ) from error
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
    return [target for _, target in staged]


def _stage(target: Path, text: str) -> Path:
    # Output of a foreign process may hold lone surrogates, which UTF-8 has not.
    content = text.encode("utf-8", "backslashreplace")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
