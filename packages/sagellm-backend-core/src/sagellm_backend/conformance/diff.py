"""The difference of two reports: regressions, progress, drift of accuracy within the bounds, speeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

QUANTILES = (0.5, 0.9, 1.0)
DRIFT = 1.25
"""The factor by which a quantile or a speed must have grown or shrunk to be told."""

SPEEDS: Mapping[str, str] = {
    "gb_per_s": "GB/s",
    "tflop_per_s": "TFLOP/s",
    "calls_per_s": "calls/s",
    "latency_us": "µs",
}
"""Metrics that are speeds, with their units. ``NAME_limit`` beside one is what plainer work reached
on the same device, in the same case."""


@dataclass(frozen=True)
class Drift:
    """A quantile of ``r_max / bound`` over the cases of one function and dtype."""

    group: str
    quantile: float
    old: float
    new: float


@dataclass(frozen=True)
class Pace:
    """A speed of a case that became another; which of the two is better only its unit tells."""

    case: str
    unit: str
    old: float
    new: float


@dataclass(frozen=True)
class Diff:
    """What became of the cases; ``changed`` maps ids to both outcomes, neither of them a pass.

    Accuracy that drifts within its bounds, and speeds, are told and not judged.
    """

    newly_failing: Mapping[str, str]
    newly_passing: Mapping[str, str]
    changed: Mapping[str, tuple[str, str]]
    appeared: Mapping[str, str]
    gone: Mapping[str, str]
    drift: tuple[Drift, ...]
    speeds: tuple[Pace, ...]
    notes: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        """Whether a case fails that passed, or passed and is not there any more, or fails anew."""
        lost = "passed" in self.gone.values()
        return (
            bool(self.newly_failing) or lost or any(o != "passed" for o in self.appeared.values())
        )

    def to_dict(self) -> dict[str, Any]:
        """The difference as plain JSON data."""
        return {"regressed": self.regressed, **asdict(self)}


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Diff:
    """Compare two reports that fit the schema; they may be of different suites or providers."""
    before = {case["id"]: case for case in old["cases"]}
    after = {case["id"]: case for case in new["cases"]}
    common = [name for name in before if name in after]
    moves = {name: (before[name]["outcome"], after[name]["outcome"]) for name in common}
    moved = {name: pair for name, pair in moves.items() if pair[0] != pair[1]}
    return Diff(
        newly_failing={name: now for name, (was, now) in moved.items() if was == "passed"},
        newly_passing={name: was for name, (was, now) in moved.items() if now == "passed"},
        changed={name: pair for name, pair in moved.items() if "passed" not in pair},
        appeared={name: case["outcome"] for name, case in after.items() if name not in before},
        gone={name: case["outcome"] for name, case in before.items() if name not in after},
        drift=tuple(_drift([(before[name], after[name]) for name in common])),
        speeds=tuple(_speeds([(before[name], after[name]) for name in common])),
        notes=tuple(_notes(old, new)),
    )


def _drift(pairs: list[tuple[Any, Any]]) -> Iterator[Drift]:
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for old, new in pairs:
        was, now = bound_share(old), bound_share(new)
        if was is not None and now is not None:
            groups[" ".join(filter(None, group_of(new)))].append((was, now))
    for name, errors in groups.items():
        before, after = zip(*errors, strict=True)
        for quantile in QUANTILES:
            was, now = _quantile(before, quantile), _quantile(after, quantile)
            if max(was, now) > DRIFT * min(was, now):
                yield Drift(name, quantile, was, now)


def _speeds(pairs: list[tuple[Any, Any]]) -> Iterator[Pace]:
    for old, new in pairs:
        for unit in SPEEDS:
            was, now = (case["metrics"].get(unit) for case in (old, new))
            if was and now and max(was, now) > DRIFT * min(was, now):
                yield Pace(new["id"], unit, was, now)


def group_of(case: Mapping[str, Any]) -> tuple[str, str]:
    """What a case's accuracy is counted under: its function and its dtype, if it has one."""
    function = case["id"].partition("[")[0].partition(".")[2]
    return function, case["values"].get("dtype", "")


def bound_share(case: Mapping[str, Any]) -> float | None:
    """``r_max`` of a case in parts of its bound; ``None`` if it measured none, or must be exact."""
    error, bound = (case["metrics"].get(name) for name in ("r_max", "bound"))
    return None if error is None or not bound else float(error / bound)


def _quantile(values: Sequence[float], quantile: float) -> float:
    """The smallest value that at least this part of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(quantile * len(ordered)), 1) - 1]


def _notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    pairs = (
        ("suites", old["suite"]["version"], new["suite"]["version"]),
        ("seeds", old["request"]["seed"], new["request"]["seed"]),
        ("depths", old["request"]["depth"], new["request"]["depth"]),
        ("backends", old["provider"]["entry_point"], new["provider"]["entry_point"]),
        ("versions", old["provider"]["version"], new["provider"]["version"]),
        ("devices", old["environment"]["device"]["name"], new["environment"]["device"]["name"]),
        ("levels", old["level"], new["level"]),
    )
    for what, one, other in pairs:
        if one != other:
            yield f"the {what} differ: {one}, then {other}"
    if old["provider"]["descriptor_digest"] != new["provider"]["descriptor_digest"]:
        yield "the descriptors differ: other things are claimed"
