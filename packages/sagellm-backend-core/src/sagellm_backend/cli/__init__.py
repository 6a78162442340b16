"""The command line ``sagellm-backend``: what is here, what is wrong, what would run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from sagellm_backend import __version__
from sagellm_backend.cli import conformance
from sagellm_backend.errors import BackendError

COMMANDS = ("list", "doctor", "explain", "conformance", "bench")
"""The commands, each a module of this package with ``add_to(subparsers)`` and ``run(options)``."""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Command(_Parser):
    """The parser of one command: options and positionals may stand in any order."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Intermixing knows no subcommands; those parse their own arguments this way.
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` is ``sys.argv[1:]`` if not given.

    Returns the exit status: 0 for success, 1 for a backend that cannot do what was asked (message
    and hint on standard error, or with ``--json`` as data on standard output); ``conformance`` has
    more, see its module. Usage errors exit with 2 through ``SystemExit``, as argparse does.
    """
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    if arguments[:1] == ["conformance"]:
        arguments[1:] = conformance.with_subcommand(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BackendError as error:
        if options.json:
            print(json.dumps(error.to_dict(), indent=2))
        else:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader left; without this the interpreter complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sagellm-backend", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_Command
    )
    for name in COMMANDS:
        module = import_module(f"{__name__}.{name}")
        command = module.add_to(commands)
        command.add_argument("--json", action="store_true", help="print plain data")
        command.set_defaults(run=module.run)
    return parser
