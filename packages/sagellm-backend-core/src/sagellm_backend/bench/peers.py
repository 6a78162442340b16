"""Peers: alternatives that run in Pythons of their own, one script for each, over a pipe.

A script answers lines of JSON on its standard input with lines of JSON: ``{"do": "warm", ...}`` with
what it made ready, ``{"do": "go", "budget": seconds}`` with the seconds of each run. What goes wrong
is ``{"error": text}``. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sagellm_backend.bench.row import Absent, Side
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

_VERSIONS = """
import importlib.metadata, json, platform
found = {"Python": platform.python_version()}
for item in importlib.metadata.distributions():
    name = (item.metadata["Name"] or "").lower()
    if name in ("torch", "transformers") or name.startswith(("vllm", "isagellm", "sagellm-backend")):
        found[name] = item.version
print(json.dumps(found))
"""

ANSWER_S = 300.0
"""How long a peer may take for one answer."""


class Worker:
    """One script in the process of a peer's Python. Close it, or leave its context."""

    def __init__(self, python: str, script: Path) -> None:
        self.script = script
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user names the Python
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, "PYTHONPATH": ""},
            )
        except OSError as error:
            self._log.close()
            raise UnavailableError(f"{python} cannot be started: {error}") from error
        self._rest = b""

    def ask(self, what: Mapping[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """Send one line and read one. Raises :class:`UnavailableError` with the peer's last words."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._lost("has ended") from None
        line = self._line(timeout_s)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            told = line[:80].decode("utf-8", "replace")
            raise UnavailableError(
                f"{self.script.name} did not answer in JSON but {told!r}"
            ) from None
        if "error" in answer:
            raise UnavailableError(f"{self.script.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not ready.select(max(until - time.monotonic(), 0.0)):
                    self._process.kill()
                    raise self._lost(f"gave no answer for {timeout_s:g} s")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise self._lost("has ended")
                self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _lost(self, how: str) -> UnavailableError:
        with suppress(subprocess.TimeoutExpired):  # its pipes close a moment before it ends
            self._process.wait(2)
        self._log.seek(0)
        words = self._log.read().decode("utf-8", "replace").strip().splitlines()
        status = self._process.returncode
        code = "" if status is None else f" with status {status}"
        return UnavailableError(
            f"{self.script.name} {how}{code}: {words[-1] if words else 'no words'}"
        )


class Peers:
    """The Pythons that the user named, and the workers that were started in them."""

    def __init__(self, pythons: Mapping[str, str], folder: Path | None) -> None:
        self.pythons = dict(pythons)
        self.folder = folder
        self._workers: dict[tuple[str, str, str], Worker] = {}

    def side(
        self, peer: str, name: str, script: str, config: Mapping[str, Any], key: str = ""
    ) -> Side | Absent:
        """The side that ``script`` computes in this peer's Python, ready to run; or why there is none.

        ``config`` is what the script is warmed with. One process serves all sides of a script with
        the same ``key``.
        """
        python = self.pythons.get(peer)
        if python is None:
            return Absent(name, f"not asked for: --peer {peer}=PYTHON")
        if self.folder is None:
            return Absent(name, "needs the repository's scripts: --also benchmarks")
        path = self.folder / script
        if not path.is_file():
            raise InvalidArgumentError(f"{path} does not exist.")
        place = peer, script, key
        try:
            if place not in self._workers:
                self._workers[place] = Worker(python, path)
            worker = self._workers[place]
            facts = worker.ask({"do": "warm", **config})["ready"] or {}
        except UnavailableError as error:
            self._forget(place)
            return Absent(name, error.message)
        return Side(name, lambda budget: _seconds(worker, budget), " ".join(place), facts)

    def versions(self) -> dict[str, dict[str, str]]:
        """What is installed in each Python, of what a benchmark may depend on."""
        return {name: _versions(python) for name, python in self.pythons.items()}

    def close(self) -> None:
        """End all workers."""
        for place in list(self._workers):
            self._forget(place)

    def _forget(self, place: tuple[str, str, str]) -> None:
        worker = self._workers.pop(place, None)
        if worker is not None:
            worker.close()


def _seconds(worker: Worker, budget: float) -> list[float]:
    found: list[float] = worker.ask({"do": "go", "budget": budget})["seconds"]
    return found


def _versions(python: str) -> dict[str, str]:
    try:
        done = subprocess.run(  # noqa: S603 - the user names the Python
            [python, "-c", _VERSIONS], check=True, capture_output=True, timeout=60
        )
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return dict(sorted(found.items()))
