"""Options that the subcommands of ``conformance`` share, and what they mean."""

from __future__ import annotations

import argparse
import math
import secrets
from pathlib import Path

# As in conformance.case, which is imported only when a subcommand runs.
_PROFILES = ("core", "stream", "kv", "kernels", "attention", "graph", "collective", "model")
_DEPTHS = ("smoke", "standard", "stress")


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add what a plan depends on: backends, profiles and depth."""
    parser.add_argument(
        "--backend",
        action="append",
        metavar="NAME",
        help="backend to examine; may be repeated (default: every available one)",
    )
    parser.add_argument(
        "--profile",
        type=profiles,
        default=None,
        metavar="A,B",
        help=f"of {', '.join(_PROFILES)}; or 'declared': all that the backend claims (default)",
    )
    parser.add_argument(
        "--depth", choices=_DEPTHS, default="standard", help="how much is run (default: standard)"
    )
    add_factory(parser)
    add_timeout(parser)


def add_factory(parser: argparse.ArgumentParser) -> None:
    """Add the option for providers that no package registers."""
    parser.add_argument(
        "--factory",
        metavar="MODULE:FUNCTION",
        help="make the provider by FUNCTION(config), found from this folder; never certified",
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add the limit on a case."""
    parser.add_argument(
        "--case-timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="seconds for one case, and for building the provider (default: 60)",
    )


def profiles(text: str) -> tuple[str, ...] | None:
    """The profiles of ``a,b``; ``None``, which is all, for ``declared``."""
    if text == "declared":
        return None
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in _PROFILES:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no profile; there are {', '.join(_PROFILES)}, and 'declared'"
            )
    return names


def seed(text: str) -> int:
    """A seed from 0 below 2**128, decimal or ``0x``; a fresh one for ``random``."""
    if text == "random":
        return secrets.randbits(64)
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 128:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'random' nor a number below 2**128")
    return number


def seconds(text: str) -> float:
    """A finite number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return number


def module_paths(factory: str | None) -> list[str]:
    """Where the children find a factory's module besides what is installed."""
    return [str(Path.cwd())] if factory else []
