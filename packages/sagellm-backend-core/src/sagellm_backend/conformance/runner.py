"""The parent of a run: it plans, has every case run by a child, and judges what they did."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagellm_backend.checks import check_int, check_seconds
from sagellm_backend.conformance import suite
from sagellm_backend.conformance.case import PROFILES, Case, Plan, plan
from sagellm_backend.conformance.checkpoint import Checkpoint, locate
from sagellm_backend.conformance.descriptor import capability_of
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.exam import case_seed
from sagellm_backend.conformance.ledger import CaseResult, Ledger, judge, judge_case
from sagellm_backend.conformance.result import STARTUP, Progress, RunResult
from sagellm_backend.conformance.startup import Startup, start
from sagellm_backend.conformance.world import World
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

MAX_REPLACEMENTS = 32
"""Worlds that are started anew after a process died or hung, before a run gives up."""


def run(
    backend: str,
    *,
    profiles: Sequence[str] | None = None,
    depth: str = "standard",
    seed: int = 0,
    case_timeout_s: float = 60.0,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    factory: str | None = None,
    modules: Sequence[str] | None = None,
    paths: Sequence[str] = (),
    cases: Sequence[str] | None = None,
    checkpoint: Path | None = None,
) -> RunResult:
    """Examine a backend; blocks until every planned case has an outcome.

    ``profiles`` are all if ``None``. ``out`` gets ``plan.json`` before the first case runs and
    ``ledger.jsonl`` as it goes. ``progress`` is called after every case. ``factory``
    (``"module:function"``, called with a config) makes the provider instead of ``get_provider``;
    ``modules`` replace the suite's, ``paths`` go before the children's module path, ``cases``
    selects by id, ``checkpoint`` is the folder of a model instead of what
    :func:`checkpoint.locate` finds. Whatever way this call is left, no process is left behind.

    Raises:
        InvalidArgumentError: no backend has the name, or an argument is bad.
        UnavailableError: the backend has no device here.
        HarnessError: the suite itself does not work; says nothing about the backend.
    """
    check_int("seed", seed, low=0, high=(1 << 128) - 1)
    check_seconds("case_timeout_s", case_timeout_s)
    names = suite.modules() if modules is None else modules
    model = checkpoint or locate()
    began, clock = _now(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sagellm-exam-") as folder:
        crew = _Crew(backend, factory, Path(folder), case_timeout_s, paths)
        try:
            startup = crew.begin()
            planned = _planned(startup, profiles, depth, names, cases, model is not None)
            used = Checkpoint(model) if model and planned.needs_checkpoint else None
            ledger = _ledger(out, planned)
            if startup.descriptor is None:
                results = [_startup_result(startup, seed)]
            else:
                crew.load = {
                    "descriptor": startup.descriptor,
                    "modules": list(names),
                    "seed": seed,
                    "depth": depth,
                    "checkpoint": str(model) if model else None,
                }
                _run_all(planned.cases, crew, ledger, seed, progress)
                results = judge(planned.cases, ledger.records, seed)
        finally:
            crew.close()
    return RunResult(
        backend=startup.name,
        distribution=startup.distribution,
        factory=factory,
        seed=seed,
        case_timeout_s=case_timeout_s,
        plan=planned,
        descriptor=startup.descriptor,
        cases=tuple(results),
        started=began,
        finished=_now(),
        seconds=time.monotonic() - clock,
        complete=factory is None and modules is None and cases is None,
        checkpoint=used.digest if used else None,
        out=out,
    )


class _Crew:
    """The worlds of a run by their size; each is started when it is needed, and anew when spoilt."""

    def __init__(
        self, backend: str, factory: str | None, folder: Path, limit_s: float, paths: Sequence[str]
    ) -> None:
        self._backend = backend
        self._factory = factory
        self._folder = folder
        self._limit_s = limit_s
        self._paths = paths
        self._worlds: dict[int, World] = {}
        self._ready: set[int] = set()
        self._replacements = 0
        self.load: dict[str, Any] = {}

    def begin(self) -> Startup:
        """What the provider says of itself; its process stays for the first cases."""
        return start(self._world(1), self._backend, self._factory, self._limit_s)

    def run(self, case: Case, ledger: Ledger) -> None:
        """Run one case, or enter that no process could be had for it."""
        try:
            world = self._fit_world(case.world)
        except (UnavailableError, InvalidArgumentError) as error:
            world = self._world(case.world)
            world.close()
            world.lost_one = True
            for rank in range(case.world):
                ledger.add("lost", case.id, rank, detail=f"no process for it: {error}")
            return
        world.run(case, self._limit_s, ledger)

    def close(self) -> None:
        """End all processes."""
        for world in self._worlds.values():
            world.close()

    def _world(self, size: int) -> World:
        return self._worlds.setdefault(
            size, World(size, self._folder / f"world{size}", self._paths)
        )

    def _fit_world(self, size: int) -> World:
        world = self._world(size)
        if not world.children:
            self._ready.discard(size)
            self._count(world)
            startup = start(world, self._backend, self._factory, self._limit_s)
            if startup.descriptor is None:
                raise UnavailableError(startup.detail)
        if size not in self._ready:
            world.ask("loaded", max(self._limit_s, 60.0), do="load", **self.load)
            self._ready.add(size)
        return world

    def _count(self, lost: World) -> None:
        if lost.lost_one:
            if self._replacements >= MAX_REPLACEMENTS:
                raise UnavailableError(f"the run gave up after {MAX_REPLACEMENTS} new processes")
            self._replacements += 1


def _planned(
    startup: Startup,
    profiles: Sequence[str] | None,
    depth: str,
    modules: Sequence[str],
    cases: Sequence[str] | None,
    checkpoint: bool,
) -> Plan:
    if startup.descriptor is None:
        return Plan(tuple(profiles or PROFILES), depth, (), ())
    capability = capability_of(startup.descriptor)
    planned = plan(capability, profiles, depth, modules, checkpoint=checkpoint)
    if cases is None:
        return planned
    known = {item.id for item in planned.cases}
    reasons = {item.id: f"{item.reason} {item.detail}" for item in planned.not_applicable}
    for name in cases:
        if name not in known:
            why = reasons.get(name, "the suite has no such case for what this backend declares")
            raise InvalidArgumentError(
                f"Case {name} is not planned for backend {startup.name!r}: {why.strip()}.",
                hint="`sagellm-backend conformance plan` lists the cases.",
            )
    return replace(planned, cases=tuple(item for item in planned.cases if item.id in cases))


def _ledger(out: Path | None, planned: Plan) -> Ledger:
    """The ledger, with the plan on disk before it."""
    if out is None:
        return Ledger()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "plan.json").write_text(json.dumps(planned.to_dict(), indent=1), encoding="utf-8")
    except OSError as error:
        raise HarnessError(
            f"Cannot write the plan to {out}: {error.strerror}.",
            hint="Choose another folder with --out.",
        ) from error
    return Ledger(out / "ledger.jsonl")


def _run_all(
    cases: Sequence[Case],
    crew: _Crew,
    ledger: Ledger,
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    start, counts, last = time.monotonic(), Counter[str](), None
    for done in range(len(cases) + 1):
        if progress is not None:
            seconds = time.monotonic() - start
            left = seconds / done * (len(cases) - done) if done else None
            current = cases[done].id if done < len(cases) else None
            progress(Progress(done, len(cases), dict(counts), last, current, seconds, left))
        if done < len(cases):
            first = len(ledger.records)
            crew.run(cases[done], ledger)
            last = judge_case(cases[done], ledger.records[first:], seed)
            counts[last.outcome] += 1


def _startup_result(startup: Startup, seed: int) -> CaseResult:
    return CaseResult(
        id=STARTUP,
        profile="core",
        outcome=startup.outcome,
        seconds=startup.seconds,
        seed=case_seed(seed, STARTUP),
        metrics={},
        detail=startup.detail,
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
