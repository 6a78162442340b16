"""What every script of a peer does: answer lines of JSON, as sagellm_backend.bench.peers asks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Warm = Callable[..., tuple[Callable[[], Any], dict[str, Any]]]
"""Makes the call that is timed of the configuration, and facts about it."""

BATCH_S = 0.001


def serve(warm: Warm) -> None:
    """Answer until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    call: Callable[[], Any] | None = None
    size = 1
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked.pop("do") == "warm":
                call, size = None, 1  # memory of the one before goes first
                call, facts = warm(**asked)
                answer = {"ready": facts}
            else:
                assert call is not None
                seconds, size = turn(call, size, asked["budget"])
                answer = {"seconds": seconds}
        except Exception as error:  # noqa: BLE001 - it is the other process that decides
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


def turn(call: Callable[[], Any], size: int, budget: float) -> tuple[list[float], int]:
    """Batches of calls for about so many seconds: the mean of each, and the batch that was used.

    A call that returns seconds has measured itself.
    """
    found: list[float] = []
    until = time.perf_counter() + budget
    while not found or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(size):
            told = call()
        spent = time.perf_counter() - began
        if isinstance(told, float):
            found.append(told)
        elif spent < BATCH_S and size < 1 << 20:
            size *= 2
        else:
            found.append(spent / size)
    return found, size
