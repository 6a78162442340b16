"""The end of a run for people: a table by profile, and every failure with its replay."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

from sagellm_backend.cli.tables import print_table
from sagellm_backend.conformance.ledger import OUTCOMES

if TYPE_CHECKING:
    from sagellm_backend.conformance.ledger import CaseResult
    from sagellm_backend.conformance.result import RunResult

_DETAIL_LINES = 12


def print_result(result: RunResult) -> None:
    """Print what a run came to."""
    profiles = result.profiles
    left_out = Counter(item.profile for item in result.plan.not_applicable)
    shown = [word for word in OUTCOMES if word == "passed" or result.counts[word]]
    rows = [
        (
            profile,
            _claim(result, profile),
            *(str(counts[word]) for word in shown),
            str(left_out[profile]),
            "passed" if sum(counts.values()) == counts["passed"] else "FAILED",
        )
        for profile, counts in profiles.items()
    ]
    columns = ("Profile", "Claimed", *(word.replace("_", " ") for word in shown))
    print_table((*columns, "not applicable", "Verdict"), rows, title=_title(result))
    for item in result.cases:
        if not item.passed:
            _print_failure(result, item)
    verdict = "conformant" if result.conformant else "NOT conformant"
    passed, total = result.counts["passed"], len(result.cases)
    print(f"{result.backend} is {verdict}: {passed} of {total} cases in {result.seconds:.1f} s.")
    if not result.cases:
        print("No case of the suite applies to what was asked; nothing was proven.")


def replay_command(result: RunResult, case_id: str) -> str:
    """The command that runs one case of this run again, with the same data."""
    words = ["sagellm-backend", "conformance", "replay"]
    if result.factory:
        words += ["--factory", result.factory]
    else:
        words += ["--backend", result.backend]
    words += ["--seed", hex(result.seed), "--depth", result.plan.depth, "--case", case_id]
    return shlex.join(words)


def _title(result: RunResult) -> str:
    seed, depth = hex(result.seed), result.plan.depth
    return f"Backend {result.backend}, depth {depth}, seed {seed}"


def _claim(result: RunResult, profile: str) -> str:
    if result.descriptor is None:
        return "unknown"
    return "yes" if profile in result.plan.claimed else "no: refusals only"


def _print_failure(result: RunResult, item: CaseResult) -> None:
    print(f"{item.outcome.upper()} {item.id} ({item.seconds:.2f} s)")
    lines = item.detail.splitlines()
    for line in lines[:_DETAIL_LINES]:
        print(f"  {line}")
    if len(lines) > _DETAIL_LINES:
        print(f"  and {len(lines) - _DETAIL_LINES} more lines, which the replay shows")
    if result.descriptor is None:
        print("  Nothing else could be examined.\n")
    else:
        print(f"  replay: {replay_command(result, item.id)}\n")
