"""What a call costs beside the work in it, and what the first provider of a process costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

from sagellm_backend.bench.row import MICROSECONDS, MILLISECONDS, Match, Row, Side, Target, add
from sagellm_backend.bench.session import Session
from sagellm_backend.errors import CapabilityError, UnavailableError

INSIDE, PLATFORM = "the torch call inside", "vLLM current_platform"

_START = """
import importlib, json, sys, time
for name in sys.argv[2:]:
    importlib.import_module(name)
began = time.perf_counter()
from sagellm_backend import get_provider
get_provider(sys.argv[1])
print(json.dumps(time.perf_counter() - began))
"""
_FRAMEWORKS = {"torch": ["torch"], "paddle": ["paddle"]}


def _call(
    session: Session, name: str, shapes: tuple[tuple[int, ...], ...], rest: tuple[Any, ...]
) -> Match:
    provider = session.provider
    reasons = provider.supports(name, dtype="fp32")
    if reasons:
        raise CapabilityError(name, provider.name, "; ".join(reasons))
    args = [*(provider.from_numpy(session.normal(*shape)) for shape in shapes), *rest]
    kernel = provider.get_kernel(name, dtype="fp32")
    # The alternatives' calls are closures over their arguments too, so that both pay the same.
    inside = session.beside(INSIDE, f"bare_{name}", *args)
    if len(args) == 2:
        first, second = args
        return Match(session.ours(lambda: kernel(first, second)), [inside])
    first, second, third = args
    return Match(session.ours(lambda: kernel(first, second, third)), [inside])


def _start(session: Session) -> Match:
    provider = session.provider
    framework = _FRAMEWORKS.get(provider.capability().array_framework, [])
    name = "auto" if framework else provider.name
    command = [sys.executable, "-c", _START, name, *framework]
    # What is installed has its bytecode, and a source tree gets it by the first run.
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def turn(_: float) -> list[float]:
        done = subprocess.run(  # noqa: S603 - this interpreter
            command, check=False, capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise UnavailableError(f"get_provider({name!r}): {done.stderr.strip()[-200:]}")
        return [float(json.loads(done.stdout.splitlines()[-1]))]

    peer = session.peer("vllm", PLATFORM, "vllm_platform.py", {})
    note = f"after importing {framework[0]}" if framework else ""
    return Match(Side("ours", turn), [peer], note=note)


_CALLS: tuple[tuple[str, tuple[tuple[int, ...], ...], tuple[Any, ...]], ...] = (
    ("matmul", ((4, 16), (16, 4)), ()),
    ("linear", ((1, 16), (16, 16)), ()),
    ("rms_norm", ((1, 16), (16,)), (1e-5,)),
)
for _name, _shapes, _rest in _CALLS:
    add(
        Row(
            f"call-{_name}",
            "calls",
            f"A call of {_name} on next to no data, through a resolved operation",
            MICROSECONDS,
            partial(_call, name=_name, shapes=_shapes, rest=_rest),
            (Target(INSIDE, more_us=0.2),),
        )
    )
add(
    Row(
        "start",
        "calls",
        "The first get_provider() of a cold process, beyond importing the framework",
        MILLISECONDS,
        _start,
        (Target(PLATFORM, ratio=20.0),),
    )
)
