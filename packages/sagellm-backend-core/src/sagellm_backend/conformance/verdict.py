"""The verdict: what follows from a report's plan, cases and facts, and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from sagellm_backend.conformance.case import PROFILES
from sagellm_backend.conformance.ledger import OUTCOMES

CERTIFIABLE_DEPTHS = ("standard", "stress")
CERTIFICATION_SEED = 20261
"""The seed of one of the two runs of a certificate; that of the other is the vendor's to draw."""

MAXIMUM_AGE = timedelta(days=90)
"""How old a report may be when a certificate is asked for."""

LEVELS: Mapping[str, str] = {
    "L0": "calls bound to the vendor's operator schemas; nothing was computed",
    "L1": "a simulated device: the contract is proven, not any hardware",
    "L2": "the hardware itself",
}
"""What each level of proof means."""


CHECKPOINTS: Mapping[str, str] = {
    "sha256:2239351ffa2cf624c58eef641e8e43e6f0e671160190b801551318334f79c0ed": "SmolLM2-135M-Instruct, as examples/fetch_model.py makes it",
}
"""The models that a certificate may rest on, by :attr:`Checkpoint.digest`."""


def level_of(descriptor: Mapping[str, Any] | None) -> str | None:
    """Where a provider runs: ``L2`` on hardware, ``L1`` on a simulated device, ``L0`` on none.

    The reference provider is simulated. Any other device is hardware unless the facts of one say
    ``level: L0`` or ``level: L1``, which a provider that runs without hardware has to declare.
    ``None`` if there is no descriptor: nothing ran.
    """
    if descriptor is None:
        return None
    if descriptor["device_type"] == "reference":
        return "L1"
    declared = {device["facts"].get("level") for device in descriptor["devices"]}
    return min(declared & LEVELS.keys(), default="L2")


def summarise(report: Mapping[str, Any]) -> dict[str, int]:
    """How many cases came to each outcome, and how many were not applicable."""
    counts = Counter(case["outcome"] for case in report["cases"])
    return {
        **{outcome: counts[outcome] for outcome in OUTCOMES},
        "not_applicable": len(report["not_applicable"]),
    }


def derive_verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on a report, whose own verdict and summary are not looked at."""
    profiles = {name: _status(report, name) for name in report["request"]["profiles"]}
    faults = list(_faults(report, profiles))
    hindrances = list(_hindrances(report))
    return {
        "conformant": not faults,
        "certifiable": not faults and not hindrances,
        "profiles": profiles,
        "reasons": faults + hindrances,
    }


def claimed_profiles(descriptor: Mapping[str, Any]) -> tuple[str, ...]:
    """The profiles that the claims of a descriptor make mandatory for a certificate."""
    features = descriptor["features"]
    operations = descriptor["operations"]
    claimed = {
        "core": True,
        "stream": "stream" in features,
        "kv": "kv_pool" in features,
        "kernels": bool(operations),
        "attention": "attention" in operations,
        "graph": "graph" in features,
        "collective": "collective" in features,
    }
    return tuple(name for name in PROFILES if claimed.get(name))


def certificate_shortfalls(
    first: Mapping[str, Any], second: Mapping[str, Any], now: datetime | None = None
) -> list[str]:
    """Why two reports make no certificate; empty if they do.

    Both must be certifiable, at most 90 days old, of one suite, provider and descriptor, with equal
    outcomes; one with :data:`CERTIFICATION_SEED`, the other with another seed.
    """
    found = []
    now = now or datetime.now(timezone.utc)
    for name, report in (("first", first), ("second", second)):
        if not report["verdict"]["certifiable"]:
            found.append(f"the {name} report is not certifiable")
        age = now - moment(report["finished"])
        if age > MAXIMUM_AGE:
            found.append(
                f"the {name} report is {age.days} days old; {MAXIMUM_AGE.days} are allowed"
            )
        if age < timedelta(0):
            found.append(f"the {name} report ends in the future, {report['finished']}")
    return found + list(_differences(first, second))


def moment(text: str) -> datetime:
    """The time that a report gives as RFC 3339, always in UTC. Raises ``ValueError``."""
    whole, _, part = text.removesuffix("Z").partition(".")
    # Python 3.10 reads neither Z nor fractions of other lengths.
    return datetime.fromisoformat(f"{whole}.{part[:6]:0<6}+00:00")


def is_sound(case: Mapping[str, Any]) -> bool:
    """Whether a case passed, with numbers that are numbers."""
    return case["outcome"] == "passed" and None not in case["metrics"].values()


def _status(report: Mapping[str, Any], profile: str) -> str:
    cases = [case for case in report["cases"] if case["profile"] == profile]
    if not cases:
        return "not_applicable"
    if not all(map(is_sound, cases)):
        return "failed"
    return "absent" if all(case["without"] for case in cases) else "passed"


def _faults(report: Mapping[str, Any], profiles: Mapping[str, str]) -> Iterator[str]:
    """Why the provider does not conform."""
    cases = report["cases"]
    if not cases:
        yield "no case was planned"
    counts = Counter(case["outcome"] for case in cases if case["outcome"] != "passed")
    if counts:
        words = ", ".join(f"{counts[word]} {word}" for word in OUTCOMES if counts[word])
        failed = ", ".join(name for name, status in profiles.items() if status == "failed")
        yield f"{sum(counts.values())} of {len(cases)} cases did not pass ({words}) in {failed}"
    for case in cases:
        if case["outcome"] == "passed" and not is_sound(case):
            yield f"{case['id']} passed with a metric that is no number"


def _hindrances(report: Mapping[str, Any]) -> Iterator[str]:
    """Why a report, conformant or not, cannot be certified."""
    request, provider, suite = report["request"], report["provider"], report["suite"]
    if report["mode"] != "certification":
        yield "the run was for development"
    if report["level"] in ("L0", "L1"):
        yield f"proven at {report['level']} ({LEVELS[report['level']]}); a certificate needs L2"
    if request["depth"] not in CERTIFIABLE_DEPTHS:
        yield f"depth {request['depth']}; a certificate needs {' or '.join(CERTIFIABLE_DEPTHS)}"
    if suite["dirty"]:
        yield "the suite's files are not those of a release or a commit"
    if provider["editable"]:
        yield "the provider does not run from an installed wheel"
    if provider["record_digest"] is None:
        yield "the provider's distribution has no RECORD"
    descriptor = provider["descriptor"]
    if descriptor is None:
        yield "the provider could not be built and asked what it claims"
        return
    examined = {case["profile"] for case in report["cases"]}
    missing = [name for name in claimed_profiles(descriptor) if name not in examined]
    if missing:
        yield f"claimed and not examined: {', '.join(missing)}"
    yield from _model_hindrances(report)
    contract = descriptor["contract"]
    if str(contract[0]) != suite["contract"].partition(".")[0]:
        yield f"the provider is of contract {contract[0]}.x, the suite of {suite['contract']}"


def _model_hindrances(report: Mapping[str, Any]) -> Iterator[str]:
    left_out = [
        item["id"] for item in report["not_applicable"] if item["reason"] == "checkpoint_absent"
    ]
    if left_out:
        yield f"{', '.join(left_out)} left out for want of a checkpoint"
    checkpoint = report["environment"]["checkpoint"]
    if checkpoint is not None and checkpoint not in CHECKPOINTS:
        yield f"the checkpoint {checkpoint} is none that a certificate may rest on"


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    seeds = [int(report["request"]["seed"], 16) for report in (first, second)]
    if CERTIFICATION_SEED not in seeds:
        yield f"neither run has the published seed {CERTIFICATION_SEED}"
    if seeds[0] == seeds[1]:
        yield "both runs have the same seed"
    if first["run_id"] == second["run_id"]:
        yield "both reports are of one run"
    pairs: Sequence[tuple[str, Any, Any]] = (
        ("suites", first["suite"]["digest"], second["suite"]["digest"]),
        ("depths", first["request"]["depth"], second["request"]["depth"]),
        ("plans", first["plan"]["digest"], second["plan"]["digest"]),
        (
            "checkpoints",
            first["environment"]["checkpoint"],
            second["environment"]["checkpoint"],
        ),
        ("providers", _who(first["provider"]), _who(second["provider"])),
        (
            "descriptors",
            first["provider"]["descriptor_digest"],
            second["provider"]["descriptor_digest"],
        ),
    )
    for what, one, other in pairs:
        if one != other:
            yield f"the {what} differ"
    outcomes = {case["id"]: case["outcome"] for case in first["cases"]}
    for case in second["cases"]:
        before = outcomes.get(case["id"], case["outcome"])
        if case["outcome"] != before:
            yield f"{case['id']} came to {before}, then to {case['outcome']}"


def _who(provider: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(provider[name] for name in ("distribution", "version", "record_digest"))
