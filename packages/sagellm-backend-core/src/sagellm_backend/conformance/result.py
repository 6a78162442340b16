"""The result of a run, and how far one is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sagellm_backend.conformance.case import PROFILES, Plan
from sagellm_backend.conformance.ledger import OUTCOMES, CaseResult

STARTUP = "core.startup"
"""The id that stands for a run whose provider could not even be built and asked what it claims."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: ``done`` of ``total`` cases, with ``counts`` by outcome.

    ``last`` is the case that just ended, ``current`` the id of the one that begins; ``left_s`` is
    what the rest will take if it goes on as before, ``None`` as long as nothing is known.
    """

    done: int
    total: int
    counts: Mapping[str, int]
    last: CaseResult | None
    current: str | None
    seconds: float
    left_s: float | None


@dataclass(frozen=True)
class RunResult:
    """A run: what was asked, planned and found.

    ``descriptor`` is what the provider claims, as plain data, or ``None`` when it could not be
    built: then ``cases`` has one result, named :data:`STARTUP`, and the plan has no cases.
    ``complete`` says that the suite's own cases were run, by an installed backend, without a
    selection: whether this was an examination at all. ``checkpoint`` is the digest of the model that
    cases ran, if any did. Times are RFC 3339, in UTC.
    """

    backend: str
    distribution: str | None
    factory: str | None
    seed: int
    case_timeout_s: float
    plan: Plan
    descriptor: Mapping[str, Any] | None
    cases: tuple[CaseResult, ...]
    started: str
    finished: str
    seconds: float
    complete: bool
    checkpoint: str | None = None
    out: Path | None = field(default=None, compare=False)

    @property
    def conformant(self) -> bool:
        """Whether there were cases, and all passed."""
        return bool(self.cases) and all(result.passed for result in self.cases)

    @property
    def counts(self) -> dict[str, int]:
        """How many cases came to each outcome."""
        found = Counter(result.outcome for result in self.cases)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def profiles(self) -> dict[str, dict[str, int]]:
        """The counts of each profile that has cases."""
        return {
            profile: replace(self, cases=results).counts
            for profile in PROFILES
            if (results := tuple(item for item in self.cases if item.profile == profile))
        }

    def to_dict(self) -> dict[str, Any]:
        """The run as plain JSON data."""
        return {
            "backend": self.backend,
            "distribution": self.distribution,
            "factory": self.factory,
            "seed": hex(self.seed),
            "case_timeout_s": self.case_timeout_s,
            "plan": self.plan.to_dict(),
            "descriptor": self.descriptor,
            "checkpoint": self.checkpoint,
            "cases": [{**item.to_dict(), "seed": hex(item.seed)} for item in self.cases],
            "summary": {**self.counts, "not_applicable": len(self.plan.not_applicable)},
            "conformant": self.conformant,
            "started": self.started,
            "finished": self.finished,
            "seconds": self.seconds,
        }
