"""The first thing asked of a provider: to be imported, built, described and closed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.world import LostError, World
from sagellm_backend.errors import InvalidArgumentError, UnavailableError


@dataclass(frozen=True)
class Startup:
    """A provider's descriptor as plain data, or the ``outcome`` and ``detail`` of having none."""

    name: str
    distribution: str | None
    descriptor: Mapping[str, Any] | None
    outcome: str
    detail: str
    seconds: float


def start(world: World, backend: str, factory: str | None, limit_s: float) -> Startup:
    """Have every process of a new world build the provider and say what it claims.

    Raises :class:`InvalidArgumentError` if no backend has the name, :class:`UnavailableError` if it
    has no device, and :class:`HarnessError` if the processes themselves do not start.
    """
    if factory is not None and not all(factory.partition(":")):
        raise InvalidArgumentError(f"The factory {factory!r} is not 'module:function'.")
    _open(world)
    clock = time.monotonic()
    try:
        answer = world.ask("started", limit_s, do="start", backend=backend, factory=factory)[0]
    except LostError as lost:
        outcome = {"timeout": "timeout", "died": "crashed"}.get(lost.record["event"], "error")
        if lost.record.get("returncode") == 0:
            outcome = "incomplete"
        detail = f"when it was built: {lost}"
        return Startup(backend, None, None, outcome, detail, time.monotonic() - clock)
    if answer["event"] == "refused":
        detail = answer["detail"]
        if answer["kind"] == "unknown":
            raise InvalidArgumentError(detail)
        if answer["kind"] == "unavailable":
            raise UnavailableError(detail)
        return Startup(backend, None, None, "error", detail, time.monotonic() - clock)
    name, distribution = answer["name"], answer["distribution"]
    seconds = time.monotonic() - clock
    return Startup(name, distribution, answer["descriptor"], "passed", "", seconds)


def describe_backend(
    backend: str, *, factory: str | None = None, limit_s: float = 60.0, paths: Sequence[str] = ()
) -> Startup:
    """What a provider claims, asked in a process of its own. Raises as :func:`start`."""
    with tempfile.TemporaryDirectory(prefix="sagellm-exam-") as folder:
        world = World(1, Path(folder), paths)
        try:
            return start(world, backend, factory, limit_s)
        finally:
            world.close()


def available_backends(limit_s: float = 60.0) -> list[str]:
    """The names of the backends that are available, looked for in a process of its own.

    Raises :class:`HarnessError` if the search does not end.
    """
    with tempfile.TemporaryDirectory(prefix="sagellm-exam-") as folder:
        world = World(1, Path(folder))
        try:
            _open(world)
            answer = world.ask("available", limit_s, do="available")[0]
        except LostError as lost:
            raise HarnessError(
                f"The search for backends did not end well: {lost}",
                hint="Name the backend with --backend; SAGELLM_BACKENDS_ALLOW keeps others out.",
            ) from lost
        finally:
            world.close()
        names: list[str] = answer["names"]
        return names


def _open(world: World) -> None:
    try:
        world.open(60.0)
    except LostError as lost:
        raise HarnessError(f"A process of the suite does not start: {lost}") from lost
