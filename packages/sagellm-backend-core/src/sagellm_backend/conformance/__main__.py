"""``python -m sagellm_backend.conformance``: examine the operations of a backend."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from sagellm_backend.conformance.operations import Finding, examine_operations
from sagellm_backend.errors import BackendError
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.registry import get_provider


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every case passed, 1 if one failed, 2 if there is no such backend here."""
    parser = argparse.ArgumentParser(prog="python -m sagellm_backend.conformance")
    parser.add_argument("--backend", required=True, help="name of the backend to examine")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default 0)")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")
    parser.add_argument(
        "--dtype",
        action="append",
        choices=[dtype.value for dtype in FLOATING],
        help="dtype to examine; may be repeated (default: all)",
    )
    options = parser.parse_args(arguments)
    try:
        provider = get_provider(options.backend)
    except BackendError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    findings = examine_operations(provider, options.dtype or FLOATING, options.seed)
    if options.json:
        sys.stdout.write(json.dumps([item.to_dict() for item in findings], indent=2) + "\n")
    else:
        _print(findings)
    return 0 if all(item.passed for item in findings) else 1


def _print(findings: Sequence[Finding]) -> None:
    """One line per operation and dtype, and one per failure."""
    table = Table("operation", "dtype", "passed", "failed", "refused", "highest r / bound")
    groups = dict.fromkeys((item.operation, item.dtype) for item in findings)
    for group in groups:
        members = [item for item in findings if (item.operation, item.dtype) == group]
        failed = sum(not item.passed for item in members)
        refused = sum(item.refused for item in members)
        worst = max(members, key=lambda item: item.r_max / (item.bound or 1.0))
        table.add_row(
            *group,
            str(len(members) - failed - refused),
            str(failed),
            str(refused),
            f"{worst.r_max:.2f} / {worst.bound:.2f} ({worst.case})",
        )
    console = Console()
    console.print(table)
    for item in findings:
        if not item.passed:
            line = f"FAILED {item.operation}[{item.dtype}-{item.case}] r_max {item.r_max:.3g}"
            console.print(f"{line}, bound {item.bound:.3g}: {item.detail}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
