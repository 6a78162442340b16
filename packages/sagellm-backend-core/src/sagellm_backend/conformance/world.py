"""The processes that run a case together, and what becomes of the others when one of them fails."""

from __future__ import annotations

import multiprocessing.connection
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sagellm_backend.conformance.case import Case
from sagellm_backend.conformance.ledger import Ledger
from sagellm_backend.conformance.process import ChildProcess
from sagellm_backend.errors import UnavailableError

GRACE_S = 10.0
"""Seconds that the other ranks have to end after one of them failed."""

_POLL_S = 0.05


class World:
    """As many children as ranks, which run one case after the other.

    For one thread. ``folder`` is for temporary files, ``paths`` are put before the module path of
    the children. ``lost_one`` says whether a process died or had to be killed when it was last open.
    """

    def __init__(self, size: int, folder: Path, paths: Sequence[str] = ()) -> None:
        self.size = size
        self._folder = folder
        self._paths = paths
        self._made = 0
        self._history: list[str] = []
        self.children: list[ChildProcess] = []
        self.lost_one = False

    def open(self, timeout_s: float) -> None:
        """Start the processes. Raises as :meth:`ask`."""
        self._history, self.lost_one = [], False
        for _ in range(self.size):
            self._made += 1
            self.children.append(ChildProcess(self._folder / str(self._made), self._paths))
        self.ask("ready", timeout_s)

    def close(self) -> None:
        """Kill the processes and all that they started."""
        while self.children:
            self.children.pop().end()

    def ask(self, wanted: str, timeout_s: float, **command: Any) -> list[dict[str, Any]]:
        """Give every process a command, if any, and return one answer of each.

        Raises :class:`LostError` unless every answer is a ``wanted`` record, or a ``refused`` one, and
        comes within ``timeout_s``.
        """
        for child in self.children:
            if command:
                child.send(**command)
        deadline = time.monotonic() + timeout_s
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < self.size:
            for rank, child in enumerate(self.children):
                record = None if rank in answers else child.receive()
                if record is None:
                    continue
                if record["event"] not in {wanted, "refused"}:
                    raise LostError(record, child.take_output()[0].decode(errors="replace"))
                answers[rank] = record
            if len(answers) < self.size and time.monotonic() > deadline:
                waiting = next(self.children[r] for r in range(self.size) if r not in answers)
                raise LostError(
                    {"event": "timeout", "limit_s": timeout_s, "stacks": waiting.stacks()}
                )
            self._wait([r for r in range(self.size) if r not in answers])
        for child in self.children:
            child.take_output()
        return [answers[rank] for rank in range(self.size)]

    def run(self, case: Case, timeout_s: float, ledger: Ledger) -> None:
        """Run a case on every rank and enter what happens.

        When a rank dies the others are killed; when it fails otherwise they have
        :data:`GRACE_S` to end. Afterwards the world is closed unless all its processes are fit for
        another case: what one failure leaves between several must not fail the next case too.
        """
        self._made += 1
        rendezvous = self._folder / f"rendezvous{self._made}"
        for rank, child in enumerate(self.children):
            child.send(
                do="case",
                id=case.id,
                rank=rank,
                world=self.size,
                init_method=f"file://{rendezvous}" if self.size > 1 else None,
            )
        watch = _Watch(self, case.id, timeout_s, ledger, tuple(self._history))
        watch.until_all_ended()
        self._history.append(case.id)
        self.lost_one = watch.lost_one
        if not watch.fit:
            self.close()
        rendezvous.unlink(missing_ok=True)

    def _wait(self, ranks: Sequence[int]) -> None:
        sources = [source for rank in ranks for source in self.children[rank].sources]
        if sources:
            multiprocessing.connection.wait(sources, _POLL_S)
        else:
            time.sleep(_POLL_S)


class LostError(UnavailableError):
    """A child that did not get as far as its cases. ``record`` is its last."""

    def __init__(self, record: dict[str, Any], output: str = "") -> None:
        self.record = record
        if record["event"] == "timeout":
            text = f"no answer within {record['limit_s']:g} s\n{record['stacks']}"
        elif record["event"] == "died":
            text = f"the process ended with {record['returncode']}\n{record['stacks']}{output}"
        else:
            text = f"the process answered {record!r}"
        super().__init__(text.strip())


class _Watch:
    """One case of a world, from the command to the last rank's end."""

    def __init__(
        self,
        world: World,
        case_id: str,
        timeout_s: float,
        ledger: Ledger,
        history: Sequence[str],
    ) -> None:
        self.fit = True
        self.lost_one = False
        self._world = world
        self._id = case_id
        self._limit_s = timeout_s
        self._ledger = ledger
        self._history = history
        self._start = time.monotonic()
        self._deadline = self._start + timeout_s
        self._waiting = dict(enumerate(world.children))
        self._culprit: int | None = None

    def until_all_ended(self) -> None:
        """Watch; afterwards ``fit`` says whether the processes can run another case."""
        while self._waiting:
            for rank in list(self._waiting):
                self._take(rank)
            if self._waiting and time.monotonic() > self._deadline:
                self._stop()
            elif self._waiting:
                self._world._wait(list(self._waiting))  # noqa: SLF001 - one noun in two classes

    def _take(self, rank: int) -> None:
        child = self._waiting[rank]
        record = child.receive()
        if record is None:
            return
        event = record.pop("event")
        if event == "start":
            before = {"nth": len(self._history), "after": [*self._history[-1:]]}
            self._ledger.add(event, self._id, rank, **before)
        elif event == "end":
            self._finish(rank, event, **record)
            self.fit &= not (record.get("left") or record.get("spoilt"))
            if record.get("outcome") != "passed":
                self.fit &= self._world.size == 1
                self._blame(rank, GRACE_S)
        else:
            if event == "unreadable":
                record = {"returncode": -9, "stacks": f"its record is unreadable: {record['line']}"}
            self._finish(rank, "died", seconds=time.monotonic() - self._start, **record)
            self.fit, self.lost_one = False, True
            self._blame(rank, 0.0)

    def _finish(self, rank: int, event: str, **content: Any) -> None:
        child = self._waiting.pop(rank)
        output, count = child.take_output()
        content.pop("id", None)
        text = output.decode(errors="replace")
        self._ledger.add(event, self._id, rank, **content, output=text, output_bytes=count)

    def _blame(self, rank: int, grace_s: float) -> None:
        if self._culprit is None:
            self._culprit = rank
            self._deadline = min(self._deadline, time.monotonic() + grace_s)

    def _stop(self) -> None:
        """The time is over: for the case, or for those that are left after another's failure."""
        self.fit, self.lost_one = False, True
        for rank, child in list(self._waiting.items()):
            if self._culprit is None:
                seconds = time.monotonic() - self._start
                content = {"limit_s": self._limit_s, "stacks": child.stacks(), "seconds": seconds}
                self._finish(rank, "timeout", **content)
            else:
                detail = f"ended because rank {self._culprit} had failed"
                self._finish(rank, "killed", detail=detail)
