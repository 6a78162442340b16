"""``sagellm-backend conformance replay``: run single cases again, with the data they had."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_backend.cli.conformance_options import (
    add_factory,
    add_timeout,
    module_paths,
    seed,
)
from sagellm_backend.errors import InvalidArgumentError

if TYPE_CHECKING:
    from sagellm_backend.conformance.result import RunResult


def add_to(subcommands: Any) -> argparse.ArgumentParser:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "replay", help="run single cases again, with the same data"
    )
    parser.add_argument(
        "report",
        nargs="?",
        type=Path,
        metavar="REPORT",
        help="report to take backend, seed and depth from; without --case, its failures too",
    )
    parser.add_argument("--case", action="append", metavar="ID", help="may be repeated")
    parser.add_argument("--backend", metavar="NAME")
    parser.add_argument("--seed", type=seed, metavar="N")
    parser.add_argument("--depth", choices=("smoke", "standard", "stress"))
    add_factory(parser)
    add_timeout(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the cases and say in full what became of them."""
    from sagellm_backend.conformance.runner import run as run_backend

    request = _request(options)
    result = run_backend(
        **request, case_timeout_s=options.case_timeout, paths=module_paths(request["factory"])
    )
    if options.json:
        print(json.dumps({"runs": [result.to_dict()]}, indent=2))
    else:
        _print(result)
    return 0 if result.conformant else 1


def _request(options: argparse.Namespace) -> dict[str, Any]:
    """What to run: as the report says where there is one, and the options where they say more."""
    from sagellm_backend.conformance.verdict import CERTIFICATION_SEED

    request: dict[str, Any] = {
        "backend": "factory" if options.factory else None,
        "seed": CERTIFICATION_SEED,
        "depth": "standard",
        "factory": None,
        "cases": None,
    }
    if options.report is not None:
        request.update(_of_report(options.report))
    given = {
        "backend": options.backend,
        "seed": options.seed,
        "depth": options.depth,
        "factory": options.factory,
        "cases": options.case,
    }
    request.update({name: value for name, value in given.items() if value is not None})
    if not request["backend"]:
        raise InvalidArgumentError("Nothing says which backend.", hint="Give --backend or REPORT.")
    if not request["cases"]:
        raise InvalidArgumentError(
            "Nothing says which case.", hint="Give --case, or a REPORT with failures."
        )
    return request


def _of_report(path: Path) -> dict[str, Any]:
    from sagellm_backend.conformance.reading import read_report

    report = read_report(path)
    failed = [item["id"] for item in report["cases"] if item["outcome"] != "passed"]
    return {
        "backend": report["provider"]["entry_point"],
        "seed": int(report["request"]["seed"], 0),
        "depth": report["request"]["depth"],
        "factory": report["request"]["factory"],
        "cases": failed,
    }


def _print(result: RunResult) -> None:
    texts = {case.id: case.text for case in result.plan.cases}
    for item in result.cases:
        print(f"{item.outcome.upper()} {item.id} on {result.backend} in {item.seconds:.3f} s")
        print(f"  {texts.get(item.id, 'The provider can be built and asked what it claims.')}")
        print(f"  root seed {result.seed:#x}, seed of the case {item.seed:#x}")
        for name, value in item.metrics.items():
            print(f"  {name} = {value:.6g}")
        for line in item.detail.splitlines():
            print(f"  {line}")
