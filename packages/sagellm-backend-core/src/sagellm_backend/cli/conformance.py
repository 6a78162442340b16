"""``sagellm-backend conformance``: examine backends, and what was written about them.

Exit status: 0 conformant, 1 not conformant, 2 bad usage, 3 no such device here, 4 the suite itself
failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from sagellm_backend.errors import BackendError, InvalidArgumentError, UnavailableError

SUBCOMMANDS = ("plan", "run", "replay", "verify", "diff", "zoo")
"""The subcommands, each a module ``conformance_NAME`` of this package with ``add_to(subparsers)``
and ``run(options)``, which returns the exit status."""

CONFORMANT, NOT_CONFORMANT, USAGE, NO_DEVICE, HARNESS, INTERRUPTED = 0, 1, 2, 3, 4, 130


def with_subcommand(arguments: Sequence[str]) -> list[str]:
    """The arguments of the command, with ``run`` before them where they name no subcommand."""
    known = {*SUBCOMMANDS, "-h", "--help"}
    has_one = bool(arguments) and (arguments[0] in known or not arguments[0].startswith("-"))
    return [*([] if has_one else ["run"]), *arguments]


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "conformance",
        help="prove what backends claim",
        description="Prove what backends claim. Without a subcommand: run.",
        epilog="Exit status: 0 conformant, 1 not, 2 usage, 3 no device, 4 the suite itself failed.",
    )
    subcommands = parser.add_subparsers(title="subcommands", required=True, metavar="SUBCOMMAND")
    for name in SUBCOMMANDS:
        module = import_module(f"{__package__}.conformance_{name}")
        subcommand = module.add_to(subcommands)
        subcommand.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print plain data"
        )
        subcommand.set_defaults(subcommand=module.run)
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the subcommand and say by the status what came of it. Children never outlive it."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        status: int = options.subcommand(options)
    except BackendError as error:
        _say(error, as_json=options.json)
        return status_of(error)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; all processes of the run were ended.\n")
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - what nobody foresaw is a fault of the suite
        traceback.print_exc()
        sys.stderr.write("This is a fault of the suite and says nothing about the backend.\n")
        return HARNESS
    finally:
        signal.signal(signal.SIGTERM, previous)
    return status


def status_of(error: BackendError) -> int:
    """The exit status for an error that ends the command."""
    if isinstance(error, InvalidArgumentError):
        return USAGE
    return NO_DEVICE if isinstance(error, UnavailableError) else HARNESS


def _say(error: BackendError, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(error.to_dict(), indent=2) + "\n")
    else:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")


def _terminate(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)
