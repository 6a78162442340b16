"""``sagellm-backend conformance run``: examine backends case by case."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_backend.cli.conformance_options import add_request, module_paths, seed
from sagellm_backend.errors import BackendError, UnavailableError

if TYPE_CHECKING:
    from sagellm_backend.conformance.result import RunResult


def add_to(subcommands: Any) -> argparse.ArgumentParser:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser("run", help="examine backends")
    add_request(parser)
    parser.add_argument(
        "--seed",
        type=seed,
        metavar="N|random",
        help="seed of all data (default: the suite's published one)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for plan, ledger and reports, with one for each backend in it",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Examine every backend that was named, or that is available.

    The status is that of the worst: the suite failed, not conformant, no device, conformant.
    """
    from sagellm_backend.cli.conformance import CONFORMANT, NOT_CONFORMANT, status_of
    from sagellm_backend.conformance.startup import available_backends

    names = options.backend or (["factory"] if options.factory else available_backends())
    results: list[RunResult] = []
    problems: list[BackendError] = []
    for name in dict.fromkeys(names):
        with _noted(name, problems):
            results.append(_examine(name, options))
            if options.out is not None:
                _write_report(results[-1])
    if options.json:
        found = {"runs": [item.to_dict() for item in results]}
        failures = {"problems": [error.to_dict() for error in problems]} if problems else {}
        print(json.dumps({**found, **failures}, indent=2))
    statuses = {CONFORMANT if item.conformant else NOT_CONFORMANT for item in results}
    statuses |= {status_of(error) for error in problems}
    return next((status for status in (4, 2, 1, 3) if status in statuses), CONFORMANT)


def _examine(name: str, options: argparse.Namespace) -> RunResult:
    from sagellm_backend.cli.conformance_progress import Display
    from sagellm_backend.cli.conformance_summary import print_result
    from sagellm_backend.conformance.runner import run as run_backend
    from sagellm_backend.conformance.verdict import CERTIFICATION_SEED

    out = None if options.out is None else options.out.absolute() / name
    with Display(name) as display:
        result = run_backend(
            name,
            profiles=options.profile,
            depth=options.depth,
            seed=CERTIFICATION_SEED if options.seed is None else options.seed,
            case_timeout_s=options.case_timeout,
            out=out,
            progress=display.show,
            factory=options.factory,
            paths=module_paths(options.factory),
        )
    if not options.json:
        print_result(result)
    return result


@contextmanager
def _noted(name: str, problems: list[BackendError]) -> Iterator[None]:
    """Say what stops the examination of one backend; that of the others goes on."""
    try:
        yield
    except BackendError as error:
        problems.append(error)
        sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")


def _write_report(result: RunResult) -> None:
    from sagellm_backend.conformance.errors import HarnessError
    from sagellm_backend.conformance.report import build_report, write_reports

    assert result.out is not None
    try:
        paths = write_reports(build_report(result), result.out)
    except UnavailableError as error:
        raise HarnessError(error.message, hint=error.hint) from error
    sys.stderr.write(f"Written: {', '.join(map(str, paths))}\n")
