"""How busy the machine was: load, the processor time of others, and whether two processes fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_backend.bench.memory_speed import processors

if TYPE_CHECKING:
    from typing_extensions import Self

_SPIN = (
    "import json,time;b=time.perf_counter();x=0\n"
    "for i in range({loops}):x+=i\n"
    "print(json.dumps(time.perf_counter()-b))"
)
_LOOPS = 5_000_000


@dataclass(frozen=True)
class Ticks:
    """Processor seconds since the machine started: all that was used, what the host took away, ours."""

    used: float
    stolen: float
    ours: float
    wall: float

    @classmethod
    def now(cls, root: Path = Path("/")) -> Ticks | None:
        """The counters, or ``None`` where the system has no ``/proc``."""
        try:
            words = (root / "proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
            tick = os.sysconf("SC_CLK_TCK")
        except (AttributeError, OSError, ValueError):
            return None
        user, nice, system, idle, wait, irq, soft, steal = map(int, words[:8])
        del idle, wait
        used = (user + nice + system + irq + soft) / tick
        return cls(used, steal / tick, _own_seconds(root, tick), time.monotonic())


class Busy:
    """Looks at the load and at scaling when it is made, and at the processors while it is entered."""

    def __init__(self, *, quick: bool = False, now: Callable[[], Ticks | None] = Ticks.now) -> None:
        self._load = _load()
        self._scaling = None if quick or processors() < 2 else scaling()
        self._now = now
        self._first: Ticks | None = None
        self._seconds = dict.fromkeys(("all", "others", "stolen"), 0.0)
        self.last: float | None = None

    def __enter__(self) -> Self:
        self._first, self.last = self._now(), None
        return self

    def __exit__(self, *_: object) -> None:
        """Add up; ``last`` is the share that others had since it was entered, if that is known."""
        spent = _spent(self._first, self._now())
        for name, seconds in spent.items():
            self._seconds[name] += seconds
        self.last = spent["others"] / spent["all"] if spent else None

    def report(self) -> dict[str, Any]:
        """Load before and after, shares of all processors while entered, and the scaling found.

        ``others`` is the share of other processes, ``stolen`` what a hypervisor took away;
        ``scaling`` is 2.0 where two spinning processes are as fast as one. ``None`` is unknown.
        """
        total = self._seconds["all"]
        return {
            "load_before": self._load,
            "load_after": _load(),
            "scaling": self._scaling,
            "others": self._seconds["others"] / total if total else None,
            "stolen": self._seconds["stolen"] / total if total else None,
        }


def scaling(loops: int = _LOOPS, attempts: int = 3) -> float:
    """How many times the work of one spinning process two of them do, by the best of the attempts."""
    alone = min(min(_spin(1, loops)) for _ in range(attempts))
    return 2 * alone / min(max(_spin(2, loops)) for _ in range(attempts))


def _spin(count: int, loops: int) -> list[float]:
    command = [sys.executable, "-S", "-c", _SPIN.format(loops=loops)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]  # noqa: S603 - our own text
    return [float(json.loads(process.communicate()[0])) for process in started]


def _spent(first: Ticks | None, last: Ticks | None) -> dict[str, float]:
    """Processor seconds between two looks: all there were, what others used, what was taken away."""
    if first is None or last is None or last.wall <= first.wall:
        return {}
    others = (last.used - first.used) - (last.ours - first.ours)
    return {
        "all": (last.wall - first.wall) * (os.cpu_count() or 1),
        "others": max(others, 0.0),
        "stolen": last.stolen - first.stolen,
    }


def _own_seconds(root: Path, tick: int) -> float:
    """Of this process, the children it has waited for, and all that live below it."""
    times = os.times()
    return sum(times[:4]) + sum(_living(root, os.getpid(), tick))


def _living(root: Path, parent: int, tick: int) -> list[float]:
    children: dict[int, list[tuple[int, float]]] = {}
    for path in (root / "proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        seconds = sum(map(int, fields[11:15])) / tick
        children.setdefault(int(fields[1]), []).append((int(path.parent.name), seconds))
    found, waiting = [], [parent]
    while waiting:
        for pid, seconds in children.get(waiting.pop(), []):
            found.append(seconds)
            waiting.append(pid)
    return found


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None
