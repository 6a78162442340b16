"""The schema of reports, and our reading of JSON Schema against that of its own library."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sagellm_backend.conformance.ledger import OUTCOMES
from sagellm_backend.conformance.report import build_report
from sagellm_backend.conformance.schema import KEYWORDS, report_schema, violations

ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description"}
SCHEMA = report_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
JUNK = (None, True, 0, -1, 1.5, "", "x", [], {}, [None], {"a": 1}, "sha256:", "0x", "L3")


def subschemas(schema):
    yield schema
    for part in ("properties", "$defs"):
        for item in schema.get(part, {}).values():
            yield from subschemas(item)
    inner = [schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", ())]
    for item in inner:
        if isinstance(item, Mapping):
            yield from subschemas(item)


def places(data, path=()):
    """The path of every value in plain data."""
    yield path
    if isinstance(data, dict):
        items = data.items()
    else:
        items = enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(data, path, value):
    data = copy.deepcopy(data)
    if not path:
        return value
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return data


def test_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_uses_only_the_words_that_are_heeded():
    used = {word for schema in subschemas(SCHEMA) for word in schema}
    assert used - ANNOTATIONS == KEYWORDS


def test_every_object_is_closed_but_the_descriptor():
    described = SCHEMA["$defs"]["descriptor"]
    inside = [id(item) for item in subschemas(described)]
    for schema in subschemas(SCHEMA):
        if "properties" in schema and id(schema) not in inside:
            assert schema["additionalProperties"] is False
            assert set(schema["required"]) == set(schema["properties"])


def test_outcomes_are_those_of_the_ledger():
    assert tuple(SCHEMA["$defs"]["outcome"]["enum"]) == OUTCOMES
    assert set(SCHEMA["properties"]["summary"]["required"]) == {*OUTCOMES, "not_applicable"}


def test_a_report_fits(make):
    results = [{"outcome": "crashed", "detail": "x", "ranks": ("crashed", "incomplete")}]
    report = json.loads(json.dumps(build_report(make.run(results=results))))
    VALIDATOR.validate(report)
    assert list(violations(report)) == []


def test_every_change_is_judged_as_by_the_library(passed):
    passed["cases"] = passed["cases"][:1]
    passed["cases"][0]["metrics"] = {"r_max": 1.5}
    passed["not_applicable"] = passed["not_applicable"][:1]
    refused = 0
    for path in places(passed):
        for value in JUNK:
            data = changed(passed, path, value)
            ours = not list(violations(data))
            assert ours is VALIDATOR.is_valid(data), (path, value)
            refused += not ours
    assert refused > 500


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_arbitrary_data_is_refused_in_words(data):
    assert all(isinstance(item, str) for item in violations(data))
    assert list(violations(data))


@pytest.mark.parametrize("length", [1, 10_000])
def test_what_is_shown_of_a_value_is_short(passed, length):
    passed["level"] = "x" * length
    (problem,) = violations(passed)
    assert problem.startswith("level: ")
    assert len(problem) < 120
