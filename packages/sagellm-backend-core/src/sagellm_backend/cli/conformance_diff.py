"""``sagellm-backend conformance diff``: what changed between two reports."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagellm_backend.conformance.diff import Diff

_SHOWN = 40


def add_to(subcommands: Any) -> argparse.ArgumentParser:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "diff", help="what changed between two reports; 1 if something got worse"
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="report.json of before")
    parser.add_argument("new", type=Path, metavar="NEW", help="report.json of now")
    return parser


def run(options: argparse.Namespace) -> int:
    """0 if no case got worse, else 1. Raises :class:`InvalidArgumentError` for what is no report."""
    from sagellm_backend.conformance.diff import compare
    from sagellm_backend.conformance.reading import read_report

    found = compare(read_report(options.old), read_report(options.new))
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    return 1 if found.regressed else 0


def _print(found: Diff) -> None:
    from sagellm_backend.conformance.diff import SPEEDS

    for note in found.notes:
        print(f"note: {note}")
    _print_group("Newly failing", found.newly_failing)
    _print_group("Newly passing", {name: f"was {was}" for name, was in found.newly_passing.items()})
    changed = {name: f"{was}, then {now}" for name, (was, now) in found.changed.items()}
    _print_group("Failing otherwise", changed)
    _print_group("Appeared", found.appeared)
    _print_group("Gone", {name: f"was {was}" for name, was in found.gone.items()})
    drift = {
        f"{item.group}, quantile {item.quantile:g}": f"{item.old:.3g} of the bound, then {item.new:.3g}"
        for item in found.drift
    }
    _print_group("Accuracy drifted", drift)
    speeds = {
        f"{item.case} in {SPEEDS[item.unit]}": f"{item.old:.3g}, then {item.new:.3g}: "
        f"{item.new / item.old:.2f} times"
        for item in found.speeds
    }
    _print_group("Other speeds", speeds)
    if not any((found.newly_failing, found.newly_passing, changed, found.appeared, found.gone)):
        print("No outcome changed.")


def _print_group(title: str, lines: Mapping[str, str]) -> None:
    if not lines:
        return
    print(f"{title}: {len(lines)}")
    for name, text in list(lines.items())[:_SHOWN]:
        print(f"  {name}: {text}")
    if len(lines) > _SHOWN:
        print(f"  and {len(lines) - _SHOWN} more")
