"""``sagellm-backend conformance verify``: whether reports hold, and whether two make a certificate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sagellm_backend.errors import InvalidArgumentError

_SHOWN = 20


def add_to(subcommands: Any) -> argparse.ArgumentParser:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "verify",
        help="check reports: schema, digests, plan, verdict",
        description="Check a report against itself and the suite. With two reports, say also "
        "whether they make a certificate.",
    )
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="one or two")
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="run the suite again here, with the same seed, and compare every outcome",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """0 if all reports hold, and make a certificate if there are two; else 1."""
    from sagellm_backend.conformance.verdict import certificate_shortfalls

    if len(options.reports) > 2:
        raise InvalidArgumentError(
            f"{len(options.reports)} reports were given.", hint="Give 1 or 2."
        )
    found = [_verify(path, rerun=options.rerun) for path in options.reports]
    answer: dict[str, Any] = {"reports": [data for _, data in found]}
    held = [report for report, data in found if report is not None and not data["problems"]]
    status = 0 if len(held) == len(found) else 1
    if len(held) == 2:
        shortfalls = certificate_shortfalls(held[0], held[1])
        answer["certificate"] = {"granted": not shortfalls, "shortfalls": shortfalls}
        status = 1 if shortfalls else 0
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        _print(answer)
    return status


def _verify(path: Path, *, rerun: bool) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """The report, if it can be read, and what is to be said of it."""
    from sagellm_backend.conformance.reading import read_report
    from sagellm_backend.conformance.verify import verify

    data: dict[str, Any] = {"path": str(path), "problems": [], "notes": []}
    try:
        report = read_report(path)
    except InvalidArgumentError as error:
        return None, {**data, "problems": [str(error)]}
    checked = verify(report)
    problems, notes = list(checked.problems), list(checked.notes)
    if rerun and not problems:
        problems += _run_again(report)
    verdict = report["verdict"]
    words = "conformant" if verdict["conformant"] else "not conformant"
    count = f"{report['summary']['passed']} of {len(report['cases'])} cases passed"
    says = f"{report['provider']['entry_point']} is {words} at {report['level']}: {count}"
    return report, {**data, "says": says, "problems": problems, "notes": notes}


def _run_again(report: Mapping[str, Any]) -> Sequence[str]:
    """Where another run with the same seed differs. Raises as the runner does."""
    from sagellm_backend.cli.conformance_options import module_paths
    from sagellm_backend.cli.conformance_progress import Display
    from sagellm_backend.conformance.report import build_report
    from sagellm_backend.conformance.runner import run as run_backend
    from sagellm_backend.conformance.verify import rerun_differences

    request, name = report["request"], report["provider"]["entry_point"]
    selected = [case["id"] for case in report["cases"]] if report["mode"] == "dev" else None
    with Display(name) as display:
        result = run_backend(
            name,
            profiles=request["profiles"],
            depth=request["depth"],
            seed=int(request["seed"], 16),
            case_timeout_s=request["case_timeout_s"],
            factory=request["factory"],
            cases=selected if report["plan"]["cases"] else None,
            paths=module_paths(request["factory"]),
            progress=display.show,
        )
    return rerun_differences(report, build_report(result))


def _print(answer: Mapping[str, Any]) -> None:
    for data in answer["reports"]:
        problems = data["problems"]
        if problems and "says" not in data:
            sys.stderr.write(f"REFUSED {problems[0]}\n")
            continue
        print(f"{'REFUSED' if problems else 'HOLDS'} {data['path']}")
        print(f"  It says that {data['says']}.")
        for line in (*problems[:_SHOWN], *(f"note: {note}" for note in data["notes"])):
            print(f"  {line}")
        if len(problems) > _SHOWN:
            print(f"  and {len(problems) - _SHOWN} more problems")
    if "certificate" in answer:
        granted = answer["certificate"]["granted"]
        print("CERTIFICATE: the two make one." if granted else "NO CERTIFICATE")
        for line in answer["certificate"]["shortfalls"][:_SHOWN]:
            print(f"  {line}")
