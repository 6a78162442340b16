"""Linear over int8 and int4 weights against ``F.linear`` over floating ones: what ``cpu/quantised.py`` stands on.

All sides are measured in turns in one process, over weights in rotation. Columns are gains over
``F.linear``, best against best; beside them torch's own kernels for quantised weights::

    OMP_NUM_THREADS=2 python benchmarks/quantised_linear.py --dtype fp32 --rows 1 8 64
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from linear import DTYPES, SHAPES, in_turns, read_bandwidth
from torch import Tensor
from torch.nn import functional

from sagellm_backend.cpu import quantised
from sagellm_backend.torch_support import quantised as floating

GROUP = 64
_aten: Any = torch.ops.aten


def sides(inputs: int, outputs: int, dtype: torch.dtype, count: int) -> dict[str, Any]:
    """By name, how to multiply and by which weights."""
    weights = [torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8) for _ in range(count)]
    packed = [weight[:, : inputs // 2].contiguous() for weight in weights]
    scale = torch.rand(outputs) / 1000
    groups = torch.rand(outputs, max(1, inputs // GROUP)) / 1000
    own = scale.to(dtype)

    def torch_int8(x: Tensor, weight: Tensor) -> Any:
        return _aten._weight_int8pack_mm(x, weight, own)  # noqa: SLF001

    found: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[Tensor]]] = {
        "F.linear": (functional.linear, [weight.to(dtype) for weight in weights]),
        "w8a16": (lambda x, weight: quantised.linear_w8a16(x, weight, scale), weights),
        "w8a8": (lambda x, weight: quantised.linear_w8a8(x, weight, scale), weights),
        "made floating": (lambda x, weight: floating.linear_w8a16(x, weight, scale), weights),
        "torch's int8": (torch_int8, weights),
    }
    if inputs % groups.shape[1] == 0:
        found["w4a16"] = (lambda x, weight: quantised.linear_w4a16(x, weight, groups), packed)
    return found


def measure(name: str, args: argparse.Namespace) -> None:
    """Print a line for each number of rows of one shape."""
    inputs, outputs = SHAPES[name]
    dtype = DTYPES[args.dtype]
    count = max(2, (args.rotation << 20) // (inputs * outputs * dtype.itemsize))
    found = sides(inputs, outputs, dtype, min(count, 32))
    for rows in args.rows:
        x = torch.randn(rows, inputs).to(dtype)
        best = {
            side: min(times)
            for side, times in zip(
                found, in_turns(list(found.values()), x, args.seconds), strict=True
            )
        }
        plain, ours = best.pop("F.linear"), best["w8a16"]
        gains = " | ".join(f"{plain / best[side]:.2f}" if side in best else "" for side in COLUMNS)
        print(
            f"| {args.dtype} | {name} {inputs}x{outputs} | {rows} | {1e6 * plain:.0f} "
            f"| {inputs * outputs / ours / 1e9:.1f} | {gains} |",
            flush=True,
        )


COLUMNS = ("w8a16", "w8a8", "w4a16", "made floating", "torch's int8")


def main() -> None:
    """Print the bandwidth, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 8, 32, 128])
    parser.add_argument("--shapes", nargs="*", default=["SmolLM2", "7B q"], metavar="WORD")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each line")
    parser.add_argument("--rotation", type=int, default=256, metavar="MIB")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, reads {read_bandwidth() / 1e9:.1f} GB/s")
    print(f"| dtype | weight | rows | F.linear us | w8a16 GB/s | {' | '.join(COLUMNS)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in SHAPES:
        if any(word in name for word in args.shapes):
            measure(name, args)


if __name__ == "__main__":
    main()
