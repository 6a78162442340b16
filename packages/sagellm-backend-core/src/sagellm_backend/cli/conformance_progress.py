"""How far a run is, on standard error: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

if TYPE_CHECKING:
    from typing_extensions import Self

    from sagellm_backend.conformance import result

_INTERVAL_S = 10.0
_REFRESH_S = 0.1


class Display:
    """The progress of one backend's run; a context manager."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._next = time.monotonic() + _INTERVAL_S
        self._bar = Progress(
            TextColumn("{task.fields[backend]}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            # Of a line that is too long only the name of the case is cut.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=self._console,
            expand=True,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("starting", total=None, backend=backend, left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: result.Progress) -> None:
        """Take up how far the run is."""
        now, last = time.monotonic(), progress.done == progress.total
        if now < self._next and not last and progress.done:
            return
        self._next = now + (_REFRESH_S if self._live else _INTERVAL_S)
        left = "" if progress.left_s is None else f"{_clock(progress.left_s)} left"
        if self._live:
            text = f"{_counts(progress)}{progress.current or ''}"
            done, total = progress.done, progress.total
            self._bar.update(self._task, completed=done, total=total, left=left, description=text)
        elif not last and progress.done:
            words = f"{progress.done} of {progress.total} cases, {_counts(progress)}{left}"
            sys.stderr.write(f"{self._backend}: {words}\n")
            sys.stderr.flush()


def _counts(progress: result.Progress) -> str:
    """What there is besides passed cases."""
    bad = [f"{count} {word}" for word, count in progress.counts.items() if word != "passed"]
    return f"{', '.join(bad)}  " if bad else ""


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
