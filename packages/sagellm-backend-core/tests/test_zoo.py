"""Zoo: its members are well formed, and the kill matrix tells right judgements from wrong ones.

The whole matrix is run by ``nox -s zoo``.
"""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace

import pytest

from sagellm_backend.cli import main
from sagellm_backend.conformance import zoo
from sagellm_backend.conformance.case import PROFILES, plan
from sagellm_backend.conformance.result import STARTUP
from sagellm_backend.conformance.zoo import matrix
from sagellm_backend.conformance.zoo.examine import Examined, examine_all, function_of, is_named
from sagellm_backend.conformance.zoo.member import Member
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.reference.provider import ReferenceProvider

EVERY = (*zoo.members(), *zoo.honest_variants())
FAST = (
    "arrays-alias",
    "wait-event-is-ignored",
    "copy-drops-last-byte",
    "rms-norm-without-eps",
    "attention-misses-last-key",
    "replay-does-nothing",
    "sum-is-an-average",
    "raises-skip-test",
    "exits-with-success",
    "fails-when-made",
)


@pytest.fixture(scope="module")
def known_functions():
    with ReferenceProvider() as provider:
        planned = plan(provider.capability(), depth="stress")
    return {function_of(item.id) for item in (*planned.cases, *planned.not_applicable)}


def test_there_are_enough():
    assert len(zoo.members()) >= 60
    assert len(zoo.honest_variants()) >= 10
    assert {profile for member in zoo.members() for profile in member.profiles} == set(PROFILES)


def test_names_and_texts_tell_members_apart():
    assert len({member.name for member in EVERY}) == len(EVERY)
    assert len({member.text for member in EVERY}) == len(EVERY)
    for member in EVERY:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", member.name)


@pytest.mark.parametrize("member", EVERY, ids=lambda member: member.name)
def test_every_member_differs_from_the_reference(member):
    assert issubclass(member.build, ReferenceProvider)
    assert member.build is not ReferenceProvider
    own = member.build.__mro__[: member.build.__mro__.index(ReferenceProvider)]
    names = {name for kind in own for name in vars(kind)} - {"__module__", "__doc__"}
    assert names & {name for kind in ReferenceProvider.__mro__ for name in vars(kind)}


@pytest.mark.parametrize("member", EVERY, ids=lambda member: member.name)
def test_every_member_is_made_by_its_factory(member):
    module, _, function = member.factory.partition(":")
    assert getattr(importlib.import_module(module), function) is member.build
    assert zoo.find(member.name) is member


def test_members_name_cases_that_exist(known_functions):
    for member in zoo.members():
        assert set(member.profiles) <= set(PROFILES)
        for name in member.kills:
            assert name in known_functions | {STARTUP}, member.name


def test_an_unknown_member_is_refused():
    with pytest.raises(InvalidArgumentError, match="arrays-alias"):
        zoo.find("arrays-alia")
    with pytest.raises(AttributeError):
        _ = zoo.nothing


@pytest.mark.parametrize(
    ("case", "name", "means"),
    [
        ("kv.copy[a-b]", "kv.copy[a-b]", True),
        ("kv.copy[a-b]", "kv.copy", True),
        ("kv.copy", "kv.copy", True),
        ("kv.copy", "kv", True),
        ("kv.copy_back[a]", "kv.copy", False),
        ("kvs.copy", "kv", False),
    ],
)
def test_names_mean_cases(case, name, means):
    assert is_named(case, name) is means


@pytest.fixture(scope="module")
def fast():
    return {item.member.name: item for item in examine_all(map(zoo.find, FAST))}


@pytest.mark.parametrize("name", FAST)
def test_members_are_failed_by_what_they_name(fast, name):
    assert fast[name].problems == ()
    for wanted in zoo.find(name).kills:
        assert any(is_named(case, wanted) for case in fast[name].failed)


def test_outcomes_are_told_apart(fast):
    outcomes = {name: {item.outcome for item in fast[name].results} for name in FAST}
    assert "illegal_skip" in outcomes["raises-skip-test"]
    assert "incomplete" in outcomes["exits-with-success"]
    assert [item.id for item in fast["fails-when-made"].results] == [STARTUP]


def _member(build, *kills, profiles=("graph",)):
    return Member("test", "A test.", build, profiles, kills)


def _examined(member, name="replay-does-nothing", *, fast):
    return Examined(member, fast[name].results, 0.0)


def test_a_survivor_is_a_problem(fast):
    (result, *_) = fast["replay-does-nothing"].results
    passed = replace(result, outcome="passed")
    for results, problem in (((passed,), "survived: every case passed"), ((), "no case was run")):
        survivor = Examined(_member(ReferenceProvider, "graph"), results, 0.0)
        assert survivor.problems == (problem,)
        assert not matrix.Matrix((survivor,), ()).passed


def test_a_case_that_is_named_and_passes_is_a_problem(fast):
    named = _member(ReferenceProvider, "graph.outputs_are_overwritten")
    assert _examined(named, fast=fast).problems == (
        "was not failed by graph.outputs_are_overwritten",
    )


def test_a_false_alarm_is_a_problem(fast):
    accused = _examined(_member(ReferenceProvider), fast=fast)
    assert len(accused.problems) == len(accused.failed) > 0
    assert not matrix.Matrix((accused,), ()).passed


def test_a_case_that_nobody_fails_is_vacuous(fast):
    found = matrix._vacuous(fast.values(), ["graph"])
    assert "graph.replay_reads_updated_inputs" not in found
    assert "graph.outputs_are_overwritten" in found
    assert not matrix.Matrix(tuple(fast.values()), tuple(found)).passed


def test_honest_variants_pass_whole_profiles():
    (examined,) = examine_all([zoo.find("has-priorities")])
    assert examined.problems == ()
    assert len(examined.results) > 50


def test_the_command_prints_the_matrix(capsys):
    assert main(["conformance", "zoo", "--member", "copy-drops-last-byte"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 broken providers caught" in printed
    assert main(["conformance", "zoo", "--member", "copy-drops-last-byte", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["passed"] is True
    assert data["members"][0]["failed"][0].startswith("kv.copies_are_exact")


@pytest.mark.parametrize("options", [["--member", "nobody"], ["--profile", "kvs"], ["--jobs", "0"]])
def test_the_command_refuses_bad_options(capsys, options):
    assert main(["conformance", "zoo", *options]) == 2
    assert capsys.readouterr().err
