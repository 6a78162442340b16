"""``sagellm-backend conformance plan``: which cases a run would have, and which not, and why."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

from sagellm_backend.cli.conformance_options import add_request, module_paths
from sagellm_backend.cli.tables import print_table

_OF_THE_REQUEST = ("profile_not_requested", "depth")


def add_to(subcommands: Any) -> argparse.ArgumentParser:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "plan", help="list the cases of a run and those that do not apply; runs none"
    )
    add_request(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the plan of every backend. Each is built once, in a process of its own."""
    from sagellm_backend.conformance.case import plan
    from sagellm_backend.conformance.checkpoint import locate
    from sagellm_backend.conformance.descriptor import capability_of
    from sagellm_backend.conformance.startup import available_backends, describe_backend
    from sagellm_backend.errors import UnavailableError

    plans: dict[str, Any] = {}
    names = options.backend or (["factory"] if options.factory else available_backends())
    for name in names:
        found = describe_backend(
            name,
            factory=options.factory,
            limit_s=options.case_timeout,
            paths=module_paths(options.factory),
        )
        if found.descriptor is None:
            raise UnavailableError(f"Backend {name!r} could not be built: {found.detail}")
        planned = plan(
            capability_of(found.descriptor),
            options.profile,
            options.depth,
            checkpoint=locate() is not None,
        )
        plans[found.name] = planned.to_dict()
    if options.json:
        print(json.dumps(plans, indent=2))
        return 0
    for name, data in plans.items():
        _print(name, data)
    return 0


def _print(backend: str, data: dict[str, Any]) -> None:
    """One case to a line, in full, for pipes; reasons only where they are of the backend."""
    for item in data["cases"]:
        print(f"{item['id']}  {item['text']}")
    reasons = Counter(item["reason"] for item in data["not_applicable"])
    for item in data["not_applicable"]:
        if item["reason"] not in _OF_THE_REQUEST:
            print(f"not applicable: {item['id']}  {item['reason']} {item['detail']}".rstrip())
    counts = Counter(item["profile"] for item in data["cases"])
    print_table(("Profile", "Cases"), [(name, str(count)) for name, count in counts.items()])
    words = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
    print(f"{backend}: {len(data['cases'])} cases; not applicable: {words}.")
    print(f"Plan {data['digest']}, suite {data['suite']}, depth {data['depth']}.")
