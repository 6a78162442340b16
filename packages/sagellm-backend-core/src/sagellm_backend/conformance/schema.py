"""The published schema of reports, and the part of JSON Schema 2020-12 that it is written in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

SCHEMA = "sagellm.conformance.report/1"
"""The name by which a report says what it is."""

KEYWORDS = frozenset(
    {"type", "const", "enum", "pattern", "minLength", "minimum", "minItems", "items", "required"}
    | {"properties", "additionalProperties", "anyOf", "$ref"}
)
"""What :func:`violations` heeds. ``title``, ``description`` and ``$``-words but ``$ref`` say
nothing of the data."""

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
}


@cache
def report_schema() -> Mapping[str, Any]:
    """The schema of a report. It is one object for all: change nothing in it."""
    text = files(__package__).joinpath("data/report-1.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def violations(data: Any, schema: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What in ``data`` is against the schema (that of reports), each as ``place: problem``.

    Raises nothing for data of any kind.
    """
    root = schema or report_schema()
    return _check(data, root, root, "")


def _check(data: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    where = at or "the report"
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        yield from _check(data, target, root, at)
    if "anyOf" in schema:
        tries = [list(_check(data, option, root, at)) for option in schema["anyOf"]]
        if all(tries):
            yield min(tries, key=len)[0]
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if kinds and not any(_TYPES[kind](data) for kind in kinds):
        yield f"{where}: {_shown(data)} is not of type {' or '.join(kinds)}"
        return
    yield from _check_value(data, schema, where)
    if isinstance(data, dict):
        yield from _check_object(data, schema, root, at)
    elif isinstance(data, list):
        if len(data) < schema.get("minItems", 0):
            yield f"{where}: {len(data)} items are fewer than {schema['minItems']}"
        for index, item in enumerate(data):
            yield from _check(item, schema.get("items", {}), root, f"{at}[{index}]")


def _check_value(data: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if "const" in schema and data != schema["const"]:
        yield f"{where}: {_shown(data)} is not {schema['const']!r}"
    if "enum" in schema and data not in schema["enum"]:
        yield f"{where}: {_shown(data)} is none of {', '.join(map(str, schema['enum']))}"
    if isinstance(data, str):
        if len(data) < schema.get("minLength", 0):
            yield f"{where}: {_shown(data)} is too short"
        if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), data):
            yield f"{where}: {_shown(data)} is not of the form {schema['pattern']}"
    elif isinstance(data, (int, float)) and not isinstance(data, bool):
        if isinstance(data, float) and not math.isfinite(data):
            yield f"{where}: {data} is no JSON number"
        elif data < schema.get("minimum", data):
            yield f"{where}: {data} is below {schema['minimum']}"


def _check_object(
    data: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    known: Mapping[str, Any] = schema.get("properties", {})
    required: Sequence[str] = schema.get("required", ())
    for name in required:
        if name not in data:
            yield f"{at or 'the report'}: {name!r} is missing"
    others = schema.get("additionalProperties", True)
    for name, value in data.items():
        place = f"{at}.{name}" if at else name
        if name in known:
            yield from _check(value, known[name], root, place)
        elif others is False:
            yield f"{place}: this field is unknown"
        elif others is not True:
            yield from _check(value, others, root, place)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
