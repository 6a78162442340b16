"""``sagellm-backend list``: every backend, with its devices or with what stands in its way."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sagellm_backend.cli.tables import human_bytes, print_items, print_table
from sagellm_backend.discovery import DiscoveryReport
from sagellm_backend.entries import Discovered
from sagellm_backend.registry import report


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "list", help="backends, their devices and states"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """List the backends. No framework is imported."""
    found = report()
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_report(found)
    return 0


def print_report(found: DiscoveryReport) -> None:
    """Print the table of backends, then a reason and a remedy for each that is not available."""
    print_table(
        ("Backend", "State", "Devices", "Memory", "Dtypes"), [_row(item) for item in found.found]
    )
    print_items((item.name, item.reason, item.remedy) for item in found.found if item.reason)
    print_items(("hint", hint, "") for hint in found.hints)


def _row(item: Discovered) -> tuple[str, ...]:
    devices = item.probe.devices if item.probe else ()
    if not devices:
        return item.name, item.state.value, "-", "-", "-"
    first = devices[0]
    name = f"{len(devices)} x {first.name}" if len(devices) > 1 else first.name
    dtypes = " ".join(dtype.value for dtype in first.dtypes)
    return item.name, item.state.value, name, human_bytes(first.total_memory_bytes), dtypes
