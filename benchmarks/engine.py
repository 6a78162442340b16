"""The published engine on our packages and on isagellm-backend: ratios of the two, run in turn.

Each side is the Python of an environment of its own, since the two cannot be installed together
(docs/engines.md says how to install ours)::

    python benchmarks/engine.py --ours OURS/bin/python --theirs THEIRS/bin/python --rounds 5

Each round starts both once, one after the other, in the order of the round's number. The model is a
seeded Llama of 36 million parameters. A ratio above 1 is in our favour: it is the median of the
ratios of the rounds, with the lowest and the highest beside it, as machines are never quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
}
NEW_TOKENS, PROMPT = 64, 128
REPEATS = 3


def prompt(length: int, start: int = 0) -> str:
    """A text of ``length`` tokens."""
    return "".join(chr(ord("A") + (start + 7 * index) % 26) for index in range(length))


async def measure(path: str, dtype: str) -> dict[str, float]:
    """Every figure of one process: seconds, but for the megabytes of the peak."""
    from sagellm_core.llm_engine import LLMEngine, LLMEngineConfig

    started = time.perf_counter()
    engine: Any = LLMEngine(LLMEngineConfig(model_path=path, backend_type="cpu", dtype=dtype))
    await engine.start()
    found = {"start": time.perf_counter() - started}

    async def one(length: int, tokens: int) -> None:
        await engine.generate(prompt(length), max_tokens=tokens)

    async def several() -> None:
        requests = (engine.generate(prompt(PROMPT, row), max_tokens=NEW_TOKENS) for row in range(8))
        await asyncio.gather(*requests)

    async def stream(row: int = 0) -> None:
        async for _ in engine.stream(prompt(PROMPT, row), max_tokens=NEW_TOKENS):
            pass

    async def streams() -> None:
        await asyncio.gather(*(stream(row) for row in range(8)))

    runs: dict[str, Callable[[], Awaitable[None]]] = {
        "prefill 128": lambda: one(128, 1),
        "prefill 512": lambda: one(512, 1),
        "generate 1": lambda: one(PROMPT, NEW_TOKENS),
        "generate 8": several,
        "stream 1": stream,
        "stream 8": streams,
    }
    await one(16, 4)
    for name, run in runs.items():
        found[name] = min([await timed(run) for _ in range(REPEATS)])
    await engine.stop()
    found["peak memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


async def timed(run: Callable[[], Awaitable[None]]) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    await run()
    return time.perf_counter() - started


def make(folder: Path, python: str) -> None:
    """Write the checkpoint, with the packages of one of the sides."""
    helpers = Path(__file__).resolve().parents[1] / "engine/tests"
    code = (
        f"import sys; sys.path.insert(0, {str(helpers)!r}); from checkpoints import make; "
        f"make({str(folder)!r}, 'llama', sizes={SIZES!r})"
    )
    subprocess.run([python, "-c", code], check=True)


def side(python: str, path: Path, dtype: str) -> dict[str, float]:
    """The figures of one process of this side."""
    command = [python, __file__, "--worker", str(path), "--dtypes", dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(ours: str, theirs: str, dtypes: list[str], rounds: int) -> None:
    """Run both sides in turn and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        make(path, ours)
        print(f"{os.cpu_count()} processors; best of {REPEATS} in each of {rounds} rounds")
        for dtype in dtypes:
            pairs = []
            for number in range(rounds):
                order = (ours, theirs) if number % 2 else (theirs, ours)
                found = {python: side(python, path, dtype) for python in order}
                pairs.append((found[ours], found[theirs]))
            print(f"\n{dtype:12} {'ours':>9} {'theirs':>9} {'ratio':>6}  lowest to highest")
            for name in pairs[0][0]:
                ratios = sorted(theirs[name] / ours[name] for ours, theirs in pairs)
                values = [
                    statistics.median(pair[which][name] for pair in pairs) for which in (0, 1)
                ]
                print(
                    f"{name:12} {values[0]:9.3f} {values[1]:9.3f} {statistics.median(ratios):6.2f}"
                    f"  {ratios[0]:.2f} to {ratios[-1]:.2f}"
                )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", help="the Python of the environment with our packages")
    parser.add_argument("--theirs", help="the Python of the one with isagellm-backend")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        import logging

        logging.disable(logging.WARNING)
        print(json.dumps(asyncio.run(measure(options.worker, options.dtypes[0]))))
    elif options.ours and options.theirs:
        compare(options.ours, options.theirs, options.dtypes, options.rounds)
    else:
        parser.error("name both Pythons, --ours and --theirs")


if __name__ == "__main__":
    main()
