"""Results of the benchmark: figures, ratios, and what became of the targets, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagellm_backend.bench.row import LIMIT, Absent, Match, Row, Side, Target
from sagellm_backend.bench.timing import Figures

Measured = tuple[Side | Absent, Figures | None]
"""A side with its figures, which an absent one does not have."""


@dataclass(frozen=True)
class Result:
    """One row that was run, or that could not be: ``ours`` is absent then.

    ``busy`` is the share of all processors that other processes had in the meantime.
    """

    row: Row
    match: Match
    ours: Measured
    others: tuple[Measured, ...]
    busy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data, by the schema ``data/bench.schema.json``."""
        row = self.row
        return {
            "name": row.name,
            "group": row.group,
            "text": row.text,
            "unit": row.unit.label,
            "higher_is_better": row.unit.rate,
            "note": self.match.note,
            "busy": self.busy,
            "ours": self._side(self.ours),
            "others": [self._other(each) for each in self.others],
            "limit": self._limit(),
        }

    def _side(self, measured: Measured) -> dict[str, Any]:
        side, figures = measured
        reason = side.reason if isinstance(side, Absent) else None
        base = {"name": side.name, "absent": reason, "best": None, "median": None, "runs": 0}
        if figures is None:
            return base
        unit, amount = self.row.unit, self.match.amount
        return {
            **base,
            "best": unit.value(figures.best, amount),
            "median": unit.value(figures.median, amount),
            "runs": figures.count,
        }

    def _other(self, measured: Measured) -> dict[str, Any]:
        ours, (side, theirs) = self.ours[1], measured
        target = self._target(side.name)
        found: dict[str, float | bool | None] = {
            "ratio_best": None,
            "ratio_median": None,
            "more_us": None,
            "met": None,
        }
        if ours is not None and theirs is not None:
            more = (ours.best - theirs.best) / self.match.amount * 1e6
            ratio = theirs.best / ours.best
            found = {
                "ratio_best": ratio,
                "ratio_median": theirs.median / ours.median,
                "more_us": more,
                "met": None if target is None else _met(target, ratio, more),
            }
        return {**self._side(measured), **found, "target": _target_data(target)}

    def _limit(self) -> dict[str, Any] | None:
        bound, target = self.match.bound, self._target(LIMIT)
        if bound is None:
            return None
        unit, amount, ours = self.row.unit, self.match.amount, self.ours[1]
        share = None if ours is None else bound.seconds / ours.best
        met = None if target is None or share is None else _met(target, share, 0.0)
        return {
            "kind": f"limit: {bound.kind}",
            "text": bound.text,
            "value": unit.value(bound.seconds, amount),
            "share": share,
            "target": _target_data(target),
            "met": met,
        }

    def _target(self, name: str) -> Target | None:
        return next((target for target in self.row.targets if target.against == name), None)


def _met(target: Target, ratio: float, more_us: float) -> bool:
    if target.more_us is not None:
        return more_us <= target.more_us
    return ratio >= (target.ratio or 0.0)


def _target_data(target: Target | None) -> dict[str, Any] | None:
    return None if target is None else {"ratio": target.ratio, "more_us": target.more_us}


def absent(row: Row, reason: str, others: Sequence[Side | Absent] = ()) -> Result:
    """The result of a row that cannot be run here."""
    ours = Absent("ours", reason)
    return Result(row, Match(ours, others), (ours, None), tuple((side, None) for side in others))
