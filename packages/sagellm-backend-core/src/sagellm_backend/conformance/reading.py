"""Reports out of files, by whomever they were written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from sagellm_backend.conformance.schema import SCHEMA, violations
from sagellm_backend.errors import InvalidArgumentError

MAX_BYTES = 256 << 20
"""The longest file that is read: about a million cases."""

_SHOWN = 3


def read_report(path: Path | str) -> dict[str, Any]:
    """The report in a file, as far as it fits the schema; what it says is not verified.

    Raises :class:`InvalidArgumentError`, in one line, for a file that cannot be read, is no JSON,
    is not a report, or holds anything that the schema does not know.
    """
    data = _read_json(Path(path))
    if not isinstance(data, dict):
        raise InvalidArgumentError(f"{path} is no report: it holds no JSON object.")
    if data.get("schema") != SCHEMA:
        raise InvalidArgumentError(
            f"{path} is no report that this release knows: its schema is {data.get('schema')!r}.",
            hint=f"Known is {SCHEMA!r}.",
        )
    found = list(violations(data))
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InvalidArgumentError(
            f"{path} is against the schema: {'; '.join(found[:_SHOWN])}{more}."
        )
    return data


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidArgumentError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(content) > MAX_BYTES:
        raise InvalidArgumentError(f"{path} is longer than {MAX_BYTES:,} bytes: no report.")
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"{path} is no report: byte {error.start} is no UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        cut = " It may be truncated." if _is_cut(content) else ""
        raise InvalidArgumentError(f"{path} is no JSON: {_line(error)}.{cut}") from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {name!r} stands twice in one object")
        found[name] = value
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:30]} is out of range")
    return value


def _int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 1 << 63:
        raise ValueError(f"the number {text[:30]} is out of range")
    return int(text)


def _is_cut(content: bytes) -> bool:
    return content.lstrip().startswith(b"{") and not content.rstrip().endswith(b"}")


def _line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())
