"""Verification: whether a report can be what its run has written, from the report alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sagellm_backend.conformance import digest, identity
from sagellm_backend.conformance.case import SUITE_VERSION, Plan, plan
from sagellm_backend.conformance.descriptor import capability_of
from sagellm_backend.conformance.exam import case_seed
from sagellm_backend.conformance.report import described
from sagellm_backend.conformance.result import STARTUP
from sagellm_backend.conformance.schema import violations
from sagellm_backend.conformance.verdict import derive_verdict, level_of, moment, summarise
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.spec import describe

Planner = Callable[..., Plan]
"""Takes what :func:`plan` takes."""


@dataclass(frozen=True)
class Verification:
    """What is wrong with a report, and what could not be looked into."""

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(report: Mapping[str, Any], planner: Planner = plan) -> Verification:
    """Check a report against the schema, against itself, and against the suite that is here.

    Digests, counts, seeds, level, summary and verdict are computed anew. If the report is of the
    very suite that is installed, so is its plan, from the descriptor in it and from whether the
    machine had a checkpoint: a case that was left out, added or rewritten shows even where all
    digests were made to fit. Raises nothing for data
    of any kind. Whether the outcomes are true only another run can tell.
    """
    against = list(violations(report))
    if against:
        return Verification(tuple(f"against the schema: {item}" for item in against))
    problems = [
        *_digests(report),
        *_suite(report),
        *_ids(report),
        *_origin(report),
        *_times(report),
        *_conclusions(report),
    ]
    if report["suite"]["digest"] != identity.suite_digest():
        hindrance = "the suite of this report is not the one installed here"
    elif report["mode"] == "dev":
        hindrance = "in a run for development the cases may be a selection"
    else:
        return Verification((*problems, *_planned(report, planner)))
    return Verification(tuple(problems), (f"the plan was not derived anew: {hindrance}",))


def _digests(report: Mapping[str, Any]) -> Iterator[str]:
    if report["digest"] != digest.report_digest(report):
        yield "the digest does not fit: the report was edited after its run"
    ids = [case["id"] for case in report["cases"]]
    planned = ids if report["provider"]["descriptor"] else [n for n in ids if n != STARTUP]
    if report["plan"]["cases"] != len(planned):
        yield f"{report['plan']['cases']} cases were planned, {len(planned)} are here"
    if report["plan"]["digest"] != digest.plan_digest(report, planned):
        yield "the digest of the plan does not fit its cases"
    provider = report["provider"]
    if provider["descriptor_digest"] != digest.descriptor_digest(provider["descriptor"]):
        yield "the digest of the descriptor does not fit it"


def _suite(report: Mapping[str, Any]) -> Iterator[str]:
    version, found = report["suite"]["version"], report["suite"]["digest"]
    known = dict(identity.published())
    known[SUITE_VERSION] = [
        *known.get(SUITE_VERSION, ()),
        identity.suite_digest(),
    ]
    if version not in known:
        yield f"suite {version} is unknown; known are {', '.join(sorted(known))}"
    elif found not in known[version]:
        yield f"suite {version} was never published with the digest {found}"


def _ids(report: Mapping[str, Any]) -> Iterator[str]:
    left_out = [item["id"] for item in report["not_applicable"]]
    counts = Counter([case["id"] for case in report["cases"]] + left_out)
    for name, count in counts.items():
        if count > 1:
            yield f"the case {name} stands {count} times in the report"
    requested = report["request"]["profiles"]
    for case in report["cases"]:
        fits = case["profile"] in requested or case["id"] == STARTUP
        if not fits or not case["id"].startswith(f"{case['profile']}."):
            yield f"the case {case['id']} is foreign to the profiles of this run"
        wanted = hex(case_seed(int(report["request"]["seed"], 16), case["id"]))
        if case["seed"] != wanted and report["suite"]["version"] == SUITE_VERSION:
            yield f"the seed of {case['id']} does not follow from that of the run"


def _origin(report: Mapping[str, Any]) -> Iterator[str]:
    provider, request = report["provider"], report["request"]
    if report["mode"] == "certification" and request["factory"] is not None:
        yield f"a provider from the factory {request['factory']!r} is for development only"
    if provider["distribution"] is None and not provider["editable"]:
        yield "no distribution is named, and yet the provider is said not to be editable"
    descriptor, device = provider["descriptor"], report["environment"]["device"]
    level = level_of(descriptor)
    if report["level"] != level:
        yield f"the level is {level}, not {report['level']}"
    wanted = descriptor and (descriptor["device_type"], len(descriptor["devices"]))
    if (device and (device["type"], device["count"])) != wanted:
        yield "the device of the environment is not that of the descriptor"


def _times(report: Mapping[str, Any]) -> Iterator[str]:
    try:
        started, finished = moment(report["started"]), moment(report["finished"])
    except ValueError as error:
        yield f"a time cannot be read: {error}"
        return
    if finished < started:
        yield f"it ended at {report['finished']}, before it started at {report['started']}"


def _conclusions(report: Mapping[str, Any]) -> Iterator[str]:
    for case in report["cases"]:
        bad = [name for name, value in case["metrics"].items() if value is None]
        if case["outcome"] == "passed" and bad:
            yield f"{case['id']} passed with {', '.join(bad)} that is no number"
    if report["summary"] != summarise(report):
        yield "the summary does not follow from the cases"
    if report["verdict"] != derive_verdict(report):
        yield "the verdict does not follow from the cases"


def _planned(report: Mapping[str, Any], planner: Planner) -> Iterator[str]:
    request, descriptor = report["request"], report["provider"]["descriptor"]
    if descriptor is None:
        if [case["id"] for case in report["cases"]] != [STARTUP]:
            yield "without a descriptor there can be no case but the start of the provider"
        return
    try:
        capability = capability_of(descriptor)
        absent = any(item["reason"] == "checkpoint_absent" for item in report["not_applicable"])
        wanted = planner(capability, request["profiles"], request["depth"], checkpoint=not absent)
    except InvalidArgumentError as error:
        yield str(error)
        return
    except Exception as error:  # noqa: BLE001 - cases ask a foreign descriptor what they like
        yield f"no plan can be made from its descriptor: {describe(error)}"
        return
    if wanted.needs_checkpoint != (report["environment"]["checkpoint"] is not None):
        yield "its cases and its environment disagree on whether a checkpoint was run"
    planned = {case.id: case for case in wanted.cases}
    found = {case["id"]: case for case in report["cases"]}
    for name in sorted(planned.keys() - found.keys()):
        yield f"the case {name} belongs to the plan and is not here"
    for name in sorted(found.keys() - planned.keys()):
        yield f"the case {name} does not belong to the plan"
    if planned.keys() == found.keys() and list(planned) != list(found):
        yield "the cases are not in the order of the plan"
    for name in sorted(planned.keys() & found.keys()):
        told = described(planned[name])
        if any(found[name][key] != value for key, value in told.items()):
            yield f"the case {name} is not described as the suite has it"
    left_out = {(item.id, item.reason) for item in wanted.not_applicable}
    said = {(item["id"], item["reason"]) for item in report["not_applicable"]}
    for name, reason in sorted(left_out ^ said):
        yield f"that {name} is not applicable ({reason}) is wrong or was left out"


def rerun_differences(report: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """Where a second run with the same seed came to something else than a report says."""
    found = [
        f"the {what} is another one in the second run"
        for what, one, other in (
            ("plan", report["plan"]["digest"], again["plan"]["digest"]),
            ("level", report["level"], again["level"]),
            (
                "checkpoint",
                report["environment"]["checkpoint"],
                again["environment"]["checkpoint"],
            ),
            (
                "descriptor",
                report["provider"]["descriptor_digest"],
                again["provider"]["descriptor_digest"],
            ),
        )
        if one != other
    ]
    outcomes = {case["id"]: case["outcome"] for case in again["cases"]}
    for case in report["cases"]:
        now = outcomes.get(case["id"], "missing")
        if now != case["outcome"]:
            found.append(f"{case['id']} came to {case['outcome']}, in the second run to {now}")
    return found
