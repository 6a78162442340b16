"""``sagellm-backend explain``: which kernel of a backend would run an operation, and why."""

from __future__ import annotations

import argparse
import ast
import json
from typing import Any

from sagellm_backend.cli.tables import print_items, print_table
from sagellm_backend.dtypes import DType
from sagellm_backend.registry import get_provider


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain", help="which kernel would run an operation, and why"
    )
    parser.add_argument("operation", metavar="OP", help="name of the operation, such as rms_norm")
    parser.add_argument("--backend", metavar="NAME", help="the backend; automatic if not given")
    parser.add_argument("--dtype", metavar="D", help="the arrays' data type, such as bf16")
    parser.add_argument(
        "static",
        metavar="KEY=VALUE",
        nargs="*",
        default=[],
        type=_pair,
        help="what else is known of the call, such as head_dim=128",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Explain one operation. The backend is built, so its framework is imported."""
    static = dict(options.static)
    if options.dtype is not None:
        static["dtype"] = DType.parse(options.dtype)
    provider = get_provider(options.backend)
    data = provider.explain(options.operation, **static).to_dict()
    data["backend"] = provider.name
    if options.json:
        print(json.dumps(data, indent=2))
    else:
        _print(data)
    return 0


def _print(data: dict[str, Any]) -> None:
    print(data["signature"])
    print_items([(data["operation"], data["meaning"], "")])
    known = ", ".join(f"{key}={value}" for key, value in data["static"].items())
    print(f"For {known or 'any arguments'}, backend {data['backend']} {_verdict(data)}.")
    if data["candidates"]:
        print_table(
            ("Kernel", "Priority", "Runs", "Why not"),
            [
                (
                    item["name"],
                    str(item["priority"]),
                    "yes" if item["supported"] else "no",
                    "; ".join(item["reasons"]),
                )
                for item in data["candidates"]
            ],
        )


def _verdict(data: dict[str, Any]) -> str:
    if data["fallback"]:
        return f"computes by the reference on the host (policy {data['policy']})"
    if data["chosen"] is None:
        return f"has no kernel that runs and refuses (policy {data['policy']})"
    return f"runs {data['chosen']}"


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()) or key == "name":
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return key, words[value.lower()]
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value
