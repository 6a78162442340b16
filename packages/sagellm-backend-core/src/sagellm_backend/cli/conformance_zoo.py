"""``sagellm-backend conformance zoo``: prove the suite by providers with planted faults."""

from __future__ import annotations

import argparse
from typing import Any

_HELP = "prove the suite: every broken provider fails, every case can fail, no honest one does"


def add_to(subcommands: Any) -> argparse.ArgumentParser:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "zoo", help=_HELP, description=f"The kill matrix: {_HELP}."
    )
    parser.add_argument(
        "--member", action="append", default=[], metavar="NAME", help="only this one; repeatable"
    )
    parser.add_argument(
        "--profile", action="append", default=[], metavar="NAME", help="only this one; repeatable"
    )
    parser.add_argument(
        "--whole", action="store_true", help="all cases of a member's profiles, not those it names"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="members at a time (default 2)"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the matrix; 0 if the suite judges every member rightly and every case can fail."""
    from sagellm_backend.conformance.zoo.matrix import main

    return main(options)
