"""Packed weights, and the kernel for few rows, against ``F.linear``: what ``cpu/linear.py`` stands on.

Both sides are measured in turns in one process, over weights in rotation that together are larger
than what a core's caches hold. A ratio above 1 is a gain. Run it with as many threads as the engine
will have::

    OMP_NUM_THREADS=2 python benchmarks/linear.py --dtype bf16 --rows 1 8
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.cpu import few_rows, machine
from sagellm_backend.cpu.linear import RULES, dtypes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
SHAPES = {
    "SmolLM2 k, v": (576, 192),
    "SmolLM2 q, o": (576, 576),
    "SmolLM2 up": (576, 1536),
    "SmolLM2 gate_up": (576, 3072),
    "SmolLM2 down": (1536, 576),
    "SmolLM2 head": (576, 49152),
    "small q": (512, 512),
    "small up": (512, 2048),
    "small down": (2048, 512),
    "7B q": (4096, 4096),
    "7B up": (4096, 11008),
    "7B down": (11008, 4096),
}
"""Inputs and outputs of the weights."""

Side = tuple[Callable[[Tensor, Tensor], Tensor | None], list[Tensor]]
"""How to multiply, and by which weights."""


def packed(x: Tensor, weight: Tensor) -> Tensor:
    """The multiplication by a weight that oneDNN has reordered."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")  # noqa: SLF001
    return result


def in_turns(sides: list[Side], x: Tensor, seconds: float) -> list[list[float]]:
    """The seconds of every call of each side; the sides take turns, the weights rotate."""
    taken: list[list[float]] = [[] for _ in sides]
    until = time.perf_counter() + seconds
    while not taken[0] or time.perf_counter() < until:
        for (multiply, weights), figures in zip(sides, taken, strict=True):
            for weight in weights:
                began = time.perf_counter()
                multiply(x, weight)
                figures.append(time.perf_counter() - began)
    return taken


def read_bandwidth(nbytes: int = 1 << 29) -> float:
    """Bytes per second of the best of many sums over memory that no cache holds."""
    memory = torch.ones(nbytes // 4)
    (figures,) = in_turns([(lambda _, weight: weight.sum(), [memory])], memory, 2.0)
    return memory.nbytes / min(figures)


def measure(name: str, rows: list[int], args: argparse.Namespace) -> None:
    """Print a line for each number of rows of one shape."""
    inputs, outputs = SHAPES[name]
    dtype = DTYPES[args.dtype]
    count = max(2, (args.rotation << 20) // (inputs * outputs * dtype.itemsize))
    weights = [torch.randn(outputs, inputs).to(dtype) for _ in range(min(count, 256))]
    reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
    began = time.perf_counter()
    copies = [reorder(weight) for weight in weights]
    packing = (time.perf_counter() - began) / len(weights)
    for size in rows:
        x = torch.randn(size, inputs).to(dtype)
        sides: list[Side] = [(functional.linear, weights), (packed, copies)]
        if few_rows.linear(x, weights[0], None) is not None:
            sides.append((lambda rows, weight: few_rows.linear(rows, weight, None), weights))
        plain, ours, *few = in_turns(sides, x, args.seconds)
        gain = f"{min(plain) / min(few[0]):.2f}" if few else ""
        rule = RULES.get(dtype)
        chosen = (
            rule is not None
            and weights[0].numel() >= rule.min_elements
            and inputs <= rule.max_inputs
            and rule.rows[0] <= size <= rule.rows[1]
        )
        print(
            f"| {args.dtype} | {name} {inputs}x{outputs} | {size} | {1e6 * min(plain):.0f} "
            f"| {weights[0].nbytes / min(plain) / 1e9:.1f} | {min(plain) / min(ours):.2f} "
            f"| {statistics.median(plain) / statistics.median(ours):.2f} "
            f"| {packing / min(plain):.1f} | {gain} | {'yes' if chosen else ''} |",
            flush=True,
        )


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), metavar="WORD")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line")
    parser.add_argument("--rotation", type=int, default=512, metavar="MIB")
    return parser.parse_args()


def main() -> None:
    """Print the machine, then the table."""
    args = parse_args()
    device = machine.processor()
    print(
        f"{time.strftime('%Y-%m-%d')}, {device.name} ({device.facts['features']}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, reads {read_bandwidth() / 1e9:.1f} GB/s"
    )
    if DTYPES[args.dtype] not in dtypes():
        raise SystemExit(f"oneDNN does not multiply packed {args.dtype} weights here.")
    print(
        "| dtype | weight | rows | F.linear us | GB/s | best | median | packing, calls "
        "| few rows | chosen |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in SHAPES:
        if any(word in name for word in args.shapes):
            measure(name, args.rows, args)


if __name__ == "__main__":
    main()
