"""``python -m sagellm_backend.conformance``: examine the operations of a backend."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from sagellm_backend.conformance.operations import Finding, examine_operations
from sagellm_backend.entries import EntryState
from sagellm_backend.errors import BackendError, InvalidArgumentError
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.registry import get_provider, report


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every case passed, 1 if one failed, 2 for bad usage, 3 if a backend is not available."""
    parser = argparse.ArgumentParser(prog="python -m sagellm_backend.conformance")
    parser.add_argument(
        "--backend",
        action="append",
        help="backend to examine; may be repeated (default: all that are available)",
    )
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
        providers = [get_provider(name) for name in options.backend or _available()]
    except BackendError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, InvalidArgumentError) else 3
    found: dict[str, list[Finding]] = {}
    for provider in providers:
        with provider, Console(stderr=True).status(f"Examining {provider.name}"):
            dtypes = options.dtype or FLOATING
            found[provider.name] = examine_operations(provider, dtypes, options.seed)
    if options.json:
        plain = {name: [item.to_dict() for item in items] for name, items in found.items()}
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
    else:
        for name, items in found.items():
            _print(name, items)
    return 0 if all(item.passed for items in found.values() for item in items) else 1


def _available() -> list[str]:
    return [item.name for item in report().found if item.state is EntryState.AVAILABLE]


def _print(backend: str, findings: Sequence[Finding]) -> None:
    """One line per operation and dtype, and one per failure."""
    heads = ("operation", "dtype", "passed", "failed", "refused", "highest r / bound")
    table = Table(*heads, title=f"Backend {backend}")
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
