"""``sagellm-backend doctor``: what is found, what is wrong with it, what to do."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

from sagellm_backend import __version__, frameworks
from sagellm_backend.capability import CONTRACT_VERSION, PROTOCOL_VERSION
from sagellm_backend.cli.list import print_report
from sagellm_backend.cli.tables import print_items, print_table
from sagellm_backend.discovery import WATCHED_VARIABLES, DiscoveryReport
from sagellm_backend.entries import Discovered, EntryState
from sagellm_backend.errors import BackendError
from sagellm_backend.registry import CHOICE, choose, report
from sagellm_backend.spec import contract_problem

PACKAGES = tuple(f"sagellm-backend-{name}" for name in ("core", "cpu", "cuda", "ascend", "kunlun"))
FRAMEWORKS = ("torch", "torch_npu", "paddlepaddle", "paddlepaddle-xpu")

_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
_VARIABLES = (CHOICE, *WATCHED_VARIABLES, _AUTOLOAD)
# Their hardware is on every machine, so that a fault of theirs always stops something.
_EVERYWHERE = ("cpu", "reference")


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="what is installed, what is wrong, what to do"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Examine the environment. No framework is imported.

    Returns 1 when no backend is available or when something is wrong with one that the user has
    the hardware for; 0 otherwise.
    """
    found = report()
    data = examine(found)
    if options.json:
        print(json.dumps(data, indent=2))
    else:
        _print(data, found)
    return 0 if data["healthy"] else 1


def examine(found: DiscoveryReport) -> dict[str, Any]:
    """Everything that the command says, as plain data.

    ``problems`` are ``{severity, what, remedy}``; ``healthy`` means that none is an ``error``.
    """
    choice = _choice()
    problems = [*_faults(found), *_traps(found), *_choice_problem(choice, found)]
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "executable": sys.executable,
        "core": {
            "version": __version__,
            "contract": _dotted(CONTRACT_VERSION),
            "protocol": PROTOCOL_VERSION,
        },
        "packages": list(_packages(found)),
        "frameworks": {name: frameworks.version_of(name) for name in FRAMEWORKS},
        "torch_build": torch.words if (torch := frameworks.torch_build()) else None,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        **found.to_dict(),
        "choice": choice,
        "problems": problems,
        "healthy": not any(problem["severity"] == "error" for problem in problems),
    }


def _packages(found: DiscoveryReport) -> Iterator[dict[str, Any]]:
    contracts: dict[str, tuple[int, int]] = {}
    for item in found.found:
        contracts.setdefault(item.distribution, item.spec.contract if item.spec else (0, 0))
    for name in dict.fromkeys((*PACKAGES, *contracts)):
        contract = contracts.get(name)
        known = contract is not None and contract != (0, 0)
        yield {
            "distribution": name,
            "version": frameworks.version_of(name),
            "contract": _dotted(contract) if contract and known else None,
            "fits": contract_problem(contract) is None if contract and known else None,
        }


def _choice() -> dict[str, Any]:
    try:
        selection = choose()
    except BackendError as error:
        what = error.message.partition("\n")[0]
        return {"backend": None, "error": what, "remedy": error.hint or ""}
    passed = [*selection.warnings, *selection.notes]
    return {"backend": selection.chosen.name, "why": _why(selection.chosen), "passed_over": passed}


def _why(chosen: Discovered) -> str:
    if os.environ.get(CHOICE, "").strip().lower() not in ("", "auto"):
        return f"{CHOICE} names it"
    return f"the highest priority ({chosen.priority}) among the available torch backends"


def _faults(found: DiscoveryReport) -> Iterator[dict[str, str]]:
    present = {*_EVERYWHERE, *(sighting.backend for sighting in found.sightings)}
    for item in found.found:
        what = f"{item.name} ({item.origin}): {item.reason}"
        if item.state is EntryState.BROKEN or (
            item.state is EntryState.FAULTED and item.name in present
        ):
            yield _problem("error", what, item.remedy)
        elif item.state in (EntryState.FAULTED, EntryState.UNSUPPORTED):
            yield _problem("warning", what, item.remedy)


def _traps(found: DiscoveryReport) -> Iterator[dict[str, str]]:
    for hint in found.hints:
        yield _problem("warning", hint, "")
    installed = frameworks.version_of("sagellm-backend-core")
    if installed not in (None, __version__):
        yield _problem(
            "error",
            f"the imported sagellm_backend is {__version__}, the installed core {installed}",
            "pip install --force-reinstall --no-deps sagellm-backend-core",
        )
    unset = not (os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME"))
    autoload = os.environ.get(_AUTOLOAD, "1") == "1"
    if frameworks.is_installed("torch_npu") and unset and autoload:
        yield _problem(
            "warning",
            "torch_npu is installed and CANN is not set up: `import torch` itself may fail",
            f"Set up CANN, or export {_AUTOLOAD}=0.",
        )


def _choice_problem(choice: dict[str, Any], found: DiscoveryReport) -> Iterator[dict[str, str]]:
    # A broken backend is among the faults already.
    broken = any(item.state is EntryState.BROKEN for item in found.found)
    if choice["backend"] is None and not broken:
        yield _problem("error", choice["error"], choice["remedy"])


def _problem(severity: str, what: str, remedy: str) -> dict[str, str]:
    return {"severity": severity, "what": what, "remedy": remedy}


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _print(data: dict[str, Any], found: DiscoveryReport) -> None:
    core = data["core"]
    rows = [
        ("Python", f"{data['python']}, {data['platform']}"),
        ("core", f"{core['version']}, contract {core['contract']}, Protocol {core['protocol']}"),
        *((item["distribution"], _package_words(item)) for item in data["packages"]),
        *((name, version or "not installed") for name, version in data["frameworks"].items()),
        *((item["backend"], item["evidence"]) for item in data["sightings"]),
        *(data["environment"].items()),
    ]
    print_table(("Found", ""), rows)
    print_report(found)
    choice = data["choice"]
    if choice["backend"]:
        print(f"\nget_provider() takes {choice['backend']}: {choice['why']}.")
    else:
        print("\nget_provider() fails.")
    if not data["problems"]:
        print("Nothing is wrong.")
        return
    print("\nWrong, and what to do")
    print_items((item["severity"], item["what"], item["remedy"]) for item in data["problems"])


def _package_words(item: dict[str, Any]) -> str:
    if item["version"] is None:
        return "not installed"
    fit = {True: ", which fits", False: ", which does not fit", None: ""}[item["fits"]]
    contract = f", contract {item['contract']}" if item["contract"] else ""
    return f"{item['version']}{contract}{fit}"
