"""Rows of the published engine, isagellm-core: on our packages, and on isagellm-backend.

The measuring is :mod:`engine`'s. Peers: ``isagellm`` is the Python of an environment with
isagellm-backend, ``isagellm-ours`` of one with our packages (docs/engines.md says how to make them).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import engine

from sagellm_backend.bench.row import MILLISECONDS, Absent, Match, Row, Side, add
from sagellm_backend.bench.session import Session

DTYPE = "float32"
FIGURES = {
    "start": "Starting the engine, with its model",
    "prefill 128": "One token after a prompt of 128",
    "prefill 512": "One token after a prompt of 512",
    "generate 1": f"{engine.NEW_TOKENS} tokens for one request",
    "generate 8": f"{engine.NEW_TOKENS} tokens for each of 8 requests",
    "stream 1": f"{engine.NEW_TOKENS} tokens streamed to one request",
    "stream 8": f"{engine.NEW_TOKENS} tokens streamed to each of 8 requests",
}


class Rounds:
    """Pairs of processes, ours and theirs, started when a row asks for one and kept for the others."""

    def __init__(self, session: Session) -> None:
        self._pythons = [session.peers.pythons[name] for name in ("isagellm-ours", "isagellm")]
        self._folder = tempfile.TemporaryDirectory()
        engine.make(Path(self._folder.name), self._pythons[0])
        self._pairs: list[list[dict[str, float]]] = []

    def figure(self, number: int, which: int, name: str) -> float:
        """Seconds of one side, 0 for ours, in one round."""
        while len(self._pairs) <= number:
            order = (0, 1) if len(self._pairs) % 2 else (1, 0)
            path = Path(self._folder.name)
            found = {i: engine.side(self._pythons[i], path, DTYPE) for i in order}
            self._pairs.append([found[0], found[1]])
        return self._pairs[number][which][name]

    def turn(self, which: int, name: str) -> Callable[[float], list[float]]:
        """A turn for each round; the first, which is not counted, is round 0 too."""
        calls = 0

        def one(_: float) -> list[float]:
            nonlocal calls
            calls += 1
            return [self.figure(max(calls - 2, 0), which, name)]

        return one


_kept: WeakKeyDictionary[Session, Rounds] = WeakKeyDictionary()


def _match(session: Session, name: str) -> Match:
    missing = [peer for peer in ("isagellm", "isagellm-ours") if peer not in session.peers.pythons]
    if missing:
        reason = " ".join(f"--peer {peer}=PYTHON" for peer in missing)
        return Match(Absent("ours", f"not asked for: {reason}"))
    rounds = _kept.get(session)
    if rounds is None:
        rounds = _kept[session] = Rounds(session)
    theirs = Side("isagellm-backend", rounds.turn(1, name))
    return Match(Side("ours", rounds.turn(0, name)), [theirs])


def add_rows() -> None:
    """Declare them."""
    for name, text in FIGURES.items():
        add(
            Row(
                f"engine-{name.replace(' ', '-')}",
                "published engine",
                f"isagellm-core, a Llama of 36 million parameters in fp32: {text[0].lower()}{text[1:]}",
                MILLISECONDS,
                partial(_match, name=name),
            )
        )
