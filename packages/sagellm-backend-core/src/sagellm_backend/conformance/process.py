"""A child process as its parent sees it: commands in, records and output out, never waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

KEPT_OUTPUT = 8192
"""Bytes of a case's output that are kept; the rest is only counted."""

_CHUNK = 1 << 16
_STACKS_S = 2.0
_CORE = Path(__file__).resolve().parents[2]
_SCRUBBED = ("PYTEST_", "COV_", "TORCHELASTIC_", "NOX_")
_LAUNCHER = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    | {"PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPATH"}
)


class ChildProcess:
    """One child, in a process group and a folder of its own.

    For one thread. :meth:`end` must be called; it kills the whole group.
    """

    def __init__(self, folder: Path, paths: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True)
        self._dump = folder / "stacks"
        commands_read, self._commands = os.pipe()
        self._answers, answers_write = os.pipe()
        output_read, output_write = os.pipe()
        self._output = output_read
        handed = (commands_read, answers_write)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    *(sys.executable, "-u", "-m", "sagellm_backend.conformance.child"),
                    *(str(commands_read), str(answers_write), str(self._dump)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                cwd=folder,
                env=child_environment(os.environ, paths),
                pass_fds=handed,
                start_new_session=True,
            )
        except BaseException:
            for descriptor in (self._commands, self._answers, self._output):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (*handed, output_write):
                os.close(descriptor)
        os.set_blocking(self._answers, False)
        os.set_blocking(self._output, False)
        self._partial = b""
        self._records: deque[dict[str, Any]] = deque()
        self._open = {self._answers, self._output}
        self.output = b""
        self.output_bytes = 0

    @property
    def sources(self) -> list[int]:
        """The descriptors to wait for; their end alone does not mean that the child is gone."""
        return list(self._open)

    def send(self, **command: Any) -> None:
        """Give a command. A child that is gone does not hear it, which :meth:`receive` shows."""
        with suppress(BrokenPipeError):
            os.write(self._commands, (json.dumps(command) + "\n").encode())

    def receive(self) -> dict[str, Any] | None:
        """The next record, if there is one now; output is taken up on the way.

        When the child has ended and said all it had to say, that is a record too: ``died`` with
        ``returncode`` and ``stacks``; so is one that no child writes, after which it is killed.
        """
        gone = self._has_ended()
        self._read()
        if self._records:
            return self._records.popleft()
        return self._death() if gone else None

    def take_output(self) -> tuple[bytes, int]:
        """The beginning of what was printed since the last call, and how many bytes that was."""
        self._read_output()
        taken = self.output, self.output_bytes
        self.output, self.output_bytes = b"", 0
        return taken

    def stacks(self) -> str:
        """Where the child's threads are now, as faulthandler says it; empty if it cannot."""
        before = self._dumped()
        os.kill(self._process.pid, signal.SIGUSR1)
        deadline, last = time.monotonic() + _STACKS_S, ""
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = self._dumped()
            if now != before and now == last:
                break
            last = now
        return self._dumped().removeprefix(before)

    def end(self) -> None:
        """Kill the child and all that it left in its group, and give its pipes back."""
        with suppress(ProcessLookupError, PermissionError):
            # Before the child is reaped no other group can have its number.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for descriptor in (self._commands, self._answers, self._output):
            os.close(descriptor)
        self._open.clear()

    def _has_ended(self) -> bool:
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _death(self) -> dict[str, Any]:
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert status is not None
        exited = status.si_code == os.CLD_EXITED
        code = status.si_status if exited else -status.si_status
        return {"event": "died", "returncode": code, "stacks": self._dumped()}

    def _read(self) -> None:
        self._read_output()
        while content := self._take(self._answers):
            *lines, self._partial = (self._partial + content).split(b"\n")
            self._records.extend(map(_parsed, lines))

    def _read_output(self) -> None:
        # Some rounds of a flood, then the caller looks at its clock again.
        for _ in range(64):
            printed = self._take(self._output)
            self.output_bytes += len(printed)
            self.output += printed[: KEPT_OUTPUT - len(self.output)]
            if not printed:
                break

    def _take(self, source: int) -> bytes:
        if source not in self._open:
            return b""
        try:
            content = os.read(source, _CHUNK)
        except BlockingIOError:
            return b""
        if not content:
            self._open.discard(source)
        return content

    def _dumped(self) -> str:
        try:
            return self._dump.read_text(errors="replace")
        except OSError:
            return ""


def child_environment(environ: Mapping[str, str], paths: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a child: without what steers test runners, launchers or the interpreter.

    Its module path is ``paths``, then what PYTHONPATH has, then the core that the parent runs.
    """
    # Threads that spin while they wait for one another make a busy machine many times slower.
    polite = {"OMP_WAIT_POLICY": "PASSIVE"}
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _LAUNCHER and not name.startswith(_SCRUBBED)
    }
    inherited = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    found = [os.path.abspath(path) for path in (*paths, *inherited, str(_CORE))]  # noqa: PTH100
    return {**polite, **kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(found))}


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if isinstance(record, dict) and isinstance(record.get("event"), str):
        return record
    return {"event": "unreadable", "line": line[:200].decode(errors="replace")}
