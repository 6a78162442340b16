"""KV copies by their size, against libc's memcpy and torch: what ``cpu/kv.py`` stands on.

    OMP_NUM_THREADS=2 python benchmarks/kv.py

Each row is our best time, the other's, and how many times faster ours is, best against best and
median against median. Sides take turns in one process, in another order each time: what a side finds
in the caches is what the one before it has left there. For the same reason every call has another of
eight batches. libc's memcpy runs in a compiled loop over the same blocks, on the same threads of
torch as our kernel. Block ids and the first provider of a process are rows of
``sagellm-backend bench``.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

Row = dict[str, Any]


def row(what: str, against: str, ours: list[float], others: list[float]) -> Row:
    """A comparison of two lists of seconds."""
    return {
        "what": what,
        "against": against,
        "ours_s": min(ours),
        "others_s": min(others),
        "best": min(others) / min(ours),
        "median": statistics.median(others) / statistics.median(ours),
    }


def in_turns(sides: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """The seconds of every call of each side."""
    for side in sides:
        side()
    taken: list[list[float]] = [[] for _ in sides]
    turns, order = list(zip(sides, taken, strict=True)), random.Random(0)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        order.shuffle(turns)
        for side, figures in turns:
            began = time.perf_counter()
            side()
            figures.append(time.perf_counter() - began)
    return taken


def libc_kernel() -> Any:
    """A function of our kernel's words that copies each block by a call of libc's memcpy."""
    import numba

    from sagellm_backend.cpu.compiled.storage import next_chunk, word

    memcpy = ctypes.CDLL(None).memcpy
    memcpy.argtypes, memcpy.restype = [ctypes.c_size_t] * 3, ctypes.c_size_t

    def copy(words: int) -> None:
        count, rows, nbytes, size = word(words, 7), word(words, 8), word(words, 9), word(words, 10)
        while True:
            first = next_chunk(words) * size
            if first >= rows * count:
                return
            for item in range(first, min(first + size, rows * count)):
                line, place = item // count, item % count
                read = word(words, 1) + line * word(words, 3) + word(word(words, 5), place) * nbytes
                put = word(words, 2) + line * word(words, 4) + word(word(words, 6), place) * nbytes
                memcpy(put, read, nbytes)

    made = numba.cfunc(numba.types.void(numba.types.int64), nopython=True)(copy)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address)
    function.made = made  # type: ignore[attr-defined]
    return function


def copies(seconds: float) -> list[Row]:
    """Batches of random 16 KiB blocks, keys and values of one layer, in 256 MiB pools."""
    import numpy as np

    from sagellm_backend import CPUBackendProvider, DType, KVLayout
    from sagellm_backend.torch_support.kv import TorchKVCopyPlan

    backend, rows = CPUBackendProvider(), []
    layout, libc = KVLayout(1, 4, 128, 16, DType.BF16), libc_kernel()
    pools = [backend.kv_pool(layout, 8192, place) for place in ("device", "host")]
    for pool in pools:
        pool.pages.fill_(1)  # type: ignore[attr-defined]
        pool.alloc(8192)
    plan, by_libc = (backend.kv_copy_plan(*pools) for _ in range(2))
    by_libc._kernel = libc  # type: ignore[attr-defined]  # noqa: SLF001
    by_torch, rng = TorchKVCopyPlan(*pools), np.random.default_rng(0)
    for count in (1, 8, 64, 512, 1024, 4096):
        ids = cycle([[rng.permutation(8192)[:count] for _ in pools] for _ in range(8)])
        sides = [lambda p=p, ids=ids: p.copy(*next(ids)) for p in (plan, by_libc, by_torch)]
        ours, libcs, torchs = in_turns(sides, seconds)
        what = f"copy {count} blocks, {layout.page_bytes * count >> 10} KiB"
        rows += [row(what, "libc memcpy", ours, libcs), row(what, "_foreach_copy_", ours, torchs)]
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row of copies")
    options = parser.parse_args()
    rows = copies(options.seconds)
    print("| what | against | ours us | theirs us | best | median |\n|---|---|---|---|---|---|")
    for each in rows:
        print(
            f"| {each['what']} | {each['against']} | {each['ours_s'] * 1e6:.3f} "
            f"| {each['others_s'] * 1e6:.3f} | {each['best']:.2f} | {each['median']:.2f} |"
        )


if __name__ == "__main__":
    main()
