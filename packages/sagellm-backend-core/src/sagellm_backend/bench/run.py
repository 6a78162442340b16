"""Running rows on one backend, and the report that comes of it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from sagellm_backend import __version__
from sagellm_backend.base import BackendProvider
from sagellm_backend.bench.busy import Busy
from sagellm_backend.bench.limits import Limits
from sagellm_backend.bench.memory_speed import processors
from sagellm_backend.bench.peers import Peers
from sagellm_backend.bench.result import Result, absent
from sagellm_backend.bench.row import Row, Side
from sagellm_backend.bench.session import Session
from sagellm_backend.bench.timing import Figures, in_turns
from sagellm_backend.errors import BackendError

FORMAT = "sagellm-backend-bench/1"
ROUNDS, BUDGET_S = 5, 0.3
_QUICK_ROUNDS, _QUICK_BUDGET_S = 1, 0.002


@dataclass
class Plan:
    """What to run: rows, peers by name, and where the scripts of peers are."""

    rows: Sequence[Row]
    peers: Mapping[str, str] = field(default_factory=dict)
    scripts: Path | None = None
    quick: bool = False
    command: str = ""


def run(
    provider: BackendProvider,
    plan: Plan,
    progress: Callable[[int, Result], object] = lambda _, __: None,
) -> dict[str, Any]:
    """Measure every row and return the report, by the schema ``data/bench.schema.json``.

    A row that cannot be run says why; no row stops the others. An interrupt ends the run, and the
    report has the rows that were done. ``progress`` is told the number of each of these. The
    provider stays the caller's.
    """
    started = _now()
    peers = Peers(plan.peers, plan.scripts)
    try:
        versions = peers.versions()
        busy = Busy(quick=plan.quick)
        limits = Limits.measure(provider, quick=plan.quick)
        session = Session(provider, limits, peers, busy, quick=plan.quick)
        found: list[Result] = []
        with suppress(KeyboardInterrupt):
            for number, row in enumerate(plan.rows, 1):
                found.append(measure(row, session))
                progress(number, found[-1])
        noise = busy.report()
    finally:
        peers.close()
    return {
        "format": FORMAT,
        "started": started,
        "finished": _now(),
        "command": plan.command,
        "quick": plan.quick,
        "machine": machine(provider),
        "peers": versions,
        "busy": noise,
        "limits": limits.to_dict(),
        "rows": [result.to_dict() for result in found],
    }


def measure(row: Row, session: Session) -> Result:
    """One row: its sides in turns, or what stands in the way."""
    try:
        match = row.prepare(session)
    except Exception as error:  # noqa: BLE001 - rows are also others' code
        return absent(row, _words(error))
    if not isinstance(match.ours, Side):
        return Result(row, match, (match.ours, None), tuple((side, None) for side in match.others))
    sides = [side for side in (match.ours, *match.others) if isinstance(side, Side)]
    rounds, budget = (_QUICK_ROUNDS, _QUICK_BUDGET_S) if session.quick else (ROUNDS, BUDGET_S)
    try:
        with session.busy:
            figures = in_turns(sides, rounds=rounds, budget=budget, warm=not session.quick)
    except Exception as error:  # noqa: BLE001 - as above
        return absent(row, _words(error))
    by_side: dict[int, Figures] = {
        id(side): found for side, found in zip(sides, figures, strict=True)
    }
    ours, *others = ((side, by_side.get(id(side))) for side in (match.ours, *match.others))
    return Result(row, match, ours, tuple(others), session.busy.last)


def _words(error: Exception) -> str:
    if isinstance(error, BackendError):
        return error.message
    return f"{type(error).__name__}: {error}"


def machine(provider: BackendProvider) -> dict[str, Any]:
    """Where it was measured, and with what."""
    claims = provider.capability()
    return {
        "backend": provider.name,
        "device": claims.device_name,
        "processor": _processor(),
        "processors": processors(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "core": __version__,
        "versions": {**_packages(), **claims.versions},
    }


def _packages() -> dict[str, str]:
    found = {}
    for item in distributions():
        name = item.metadata["Name"]
        if name and (name.startswith("sagellm-backend") or name in ("numpy", "numba")):
            found[name] = item.version
    return dict(sorted(found.items()))


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2] for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine()).strip()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
