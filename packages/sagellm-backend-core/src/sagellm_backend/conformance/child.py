"""The process that runs cases, one at a time, as its parent tells it over a pipe.

Started as ``python -m sagellm_backend.conformance.child COMMANDS ANSWERS DUMP``: two file
descriptors and the path for stack dumps, which are taken on SIGUSR1. Commands and answers are JSON,
one to a line. Nothing that a case prints can be taken for an answer.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sagellm_backend.conformance.case import Case, all_cases
from sagellm_backend.conformance.descriptor import capability_of
from sagellm_backend.conformance.exam import Exam, is_skip
from sagellm_backend.entries import EntryState
from sagellm_backend.errors import BackendError, InvalidArgumentError, UnavailableError
from sagellm_backend.registry import choose, get_provider, report
from sagellm_backend.spec import build, describe

if TYPE_CHECKING:
    from sagellm_backend.base import BackendProvider
    from sagellm_backend.capability import CapabilityDescriptor

STRAY_GRACE_S = 1.0
"""Seconds that threads of a case have to end after it."""

_MAX_FRAMES = 12


class Child:
    """The state between commands: how providers are made, and the cases by their ids."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        self._build: Callable[[Mapping[str, Any]], BackendProvider]
        self._capability: CapabilityDescriptor
        self._cases: dict[str, Case] = {}
        self._root_seed = 0
        self._depth = ""
        self._checkpoint: Path | None = None

    def answer(self, event: str, **content: Any) -> None:
        """Send one record to the parent."""
        self._answers.write(json.dumps({"event": event, **content}) + "\n")
        self._answers.flush()

    def available(self) -> None:
        """Answer with the names of the available backends."""
        found = [item.name for item in report().found if item.state is EntryState.AVAILABLE]
        self.answer("available", names=found)

    def start(self, backend: str, factory: str | None) -> None:
        """Build a provider once, close it, and answer with its descriptor or its refusal."""
        kind, distribution = "unavailable", None
        try:
            if factory is None:
                chosen = choose(backend).chosen
                backend, distribution = chosen.name, chosen.distribution
            kind = "error"
            self._build = _builder(backend, factory)
            with self._build({}) as provider:
                descriptor = json.loads(json.dumps(provider.capability().to_dict()))
            capability_of(descriptor)
        except BaseException as error:  # noqa: BLE001 - whatever a provider raises is its outcome
            if kind == "unavailable" and isinstance(error, InvalidArgumentError):
                kind = "unknown"
            elif isinstance(error, UnavailableError) and not _raised_by(error, build):
                kind = "unavailable"
            self.answer("refused", kind=kind, detail=_summary(error, frames=kind == "error"))
        else:
            identity = {"name": backend, "distribution": distribution}
            self.answer("started", descriptor=descriptor, **identity)

    def load(
        self,
        descriptor: Mapping[str, Any],
        modules: Any,
        seed: int,
        depth: str,
        checkpoint: str | None,
    ) -> None:
        """Collect the cases that the parent planned."""
        self._capability = capability_of(descriptor)
        cases, _ = all_cases(self._capability, modules)
        self._cases = {case.id: case for case in cases}
        self._root_seed, self._depth = seed, depth
        self._checkpoint = Path(checkpoint) if checkpoint else None
        self.answer("loaded", cases=len(cases))

    def case(self, id: str, rank: int, world: int, init_method: str | None) -> None:  # noqa: A002
        """Run one case. Its end is answered when its providers are closed, and not before."""
        case, before = self._cases[id], set(threading.enumerate())
        self.answer("start", id=id)
        start = time.perf_counter()
        exam: Exam | None = None

        def end(outcome: str, detail: str, **more: Any) -> None:
            seconds, metrics = time.perf_counter() - start, exam.metrics if exam else {}
            content = {"outcome": outcome, "detail": detail, "metrics": metrics, **more}
            self.answer("end", id=id, seconds=seconds, **content)

        def leave() -> None:
            end("passed", "", left=True)
            os.kill(os.getpid(), signal.SIGKILL)

        outcome, detail = "passed", ""
        try:
            exam = Exam(
                case,
                self._capability,
                self._build,
                root_seed=self._root_seed,
                depth=self._depth,
                rank=rank,
                world=world,
                init_method=init_method,
                checkpoint=self._checkpoint,
                leave=leave if world > 1 else None,
            )
            returned: object = case.function(exam)  # type: ignore[func-returns-value]
            if returned is not None:
                outcome, detail = "error", f"the case returned a {type(returned).__name__}"
        except BaseException as error:  # noqa: BLE001 - nothing but returning is a pass
            outcome, detail = _outcome(error), _summary(error)
        try:
            if exam is not None:
                exam.close()
        except BaseException as error:  # noqa: BLE001 - as above
            if outcome == "passed":
                outcome, detail = _outcome(error), f"when closed: {_summary(error)}"
        stray = _stray(before)
        if stray and outcome == "passed":
            outcome, detail = "failed", f"left threads behind: {', '.join(stray)}"
        sys.stdout.flush()
        sys.stderr.flush()
        end(outcome, detail, spoilt=bool(stray))


def _builder(backend: str, factory: str | None) -> Callable[[Mapping[str, Any]], BackendProvider]:
    if factory is None:
        return lambda config: get_provider(backend, dict(config) or None)
    module, _, name = factory.partition(":")
    make: Callable[[Any], BackendProvider] = getattr(import_module(module), name)
    return lambda config: make(dict(config) or None)


def _raised_by(error: BaseException, function: Any) -> bool:
    """Whether ``function`` itself raised this: build() does for factories that break the rules."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code is function.__code__


def _outcome(error: BaseException) -> str:
    if is_skip(error):
        return "illegal_skip"
    return "failed" if isinstance(error, AssertionError) else "error"


def _summary(error: BaseException, *, frames: bool = True) -> str:
    """Type and message, then where: the innermost frames, by module and not by path."""
    message = str(error).strip()
    if message and not isinstance(error, (AssertionError, BackendError)):
        message = f"{type(error).__name__}: {message}"
    lines = [message or describe(error)]
    if not frames:
        return lines[0]
    for frame, number in list(traceback.walk_tb(error.__traceback__))[-_MAX_FRAMES:]:
        module = frame.f_globals.get("__name__", "?")
        if module != __name__:
            lines.append(f"  at {module}:{number} in {frame.f_code.co_name}")
    if error.__cause__ is not None:
        lines.append(f"  caused by {describe(error.__cause__)}")
    return "\n".join(lines)


def _stray(before: set[threading.Thread]) -> list[str]:
    """The names of non-daemon threads that a case started and left running."""
    deadline = time.monotonic() + STRAY_GRACE_S
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            thread.join(max(deadline - time.monotonic(), 0))
    left = set(threading.enumerate()) - before
    return sorted(thread.name for thread in left if not thread.daemon)


def main(arguments: list[str]) -> None:
    """Obey commands until there are no more, then end at once whatever threads are left."""
    commands, answers, dump = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    os.set_inheritable(commands, False)
    os.set_inheritable(answers, False)
    stacks = dump.open("w")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks)
    child = Child(os.fdopen(answers, "w", encoding="utf-8"))
    obey = {name: getattr(child, name) for name in ("available", "start", "load", "case")}
    child.answer("ready")
    with os.fdopen(commands, encoding="utf-8") as lines:
        for line in lines:
            command = json.loads(line)
            obey[command.pop("do")](**command)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
