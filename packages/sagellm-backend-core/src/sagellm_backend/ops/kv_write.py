"""kv_write: new keys and values into the paged cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.dtypes import DType
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Array, Case, normal
from sagellm_backend.ops.statics import Static, positive_int
from sagellm_backend.ops.table import Arguments, declare


def _cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, tokens, blocks, size, heads, width in (
        ("one", 1, 1, 1, 1, 1),
        ("odd", 13, 5, 16, 2, 24),
        ("full", 32, 4, 8, 1, 64),
        ("decode", 3, 9, 32, 8, 128),
        ("empty", 0, 2, 4, 1, 8),
    ):
        slots = rng.permutation(blocks * size)[:tokens]
        yield _case(rng, dtype, label, slots, (blocks, size, heads, width))
    edges = np.array([0, -1, 15, 16, -1, 79], np.int64)
    yield _case(rng, dtype, "skips", edges, (5, 16, 2, 8))
    yield _case(rng, dtype, "skips-all", np.full(4, -1, np.int64), (2, 4, 2, 8))
    yield _case(rng, dtype, "int32", edges.astype(np.int32), (5, 16, 2, 8))


def _case(
    rng: np.random.Generator, dtype: DType, label: str, slots: Array, shape: tuple[int, ...]
) -> Case:
    """The caches hold numbers here and NaN there, all of which must survive."""
    _, _, heads, width = shape
    caches = [normal(rng, dtype, *shape) for _ in range(2)]
    for cache in caches:
        cache[-1, -1] = np.nan
    return Case(
        label,
        key=normal(rng, dtype, len(slots), heads, width),
        value=normal(rng, dtype, len(slots), heads, width),
        key_cache=caches[0],
        value_cache=caches[1],
        slots=slots,
    )


def _inspect(arguments: Arguments) -> str | None:
    blocks, size = arguments["key_cache"].shape[:2]
    slots = arguments["slots"]
    bad = slots[(slots < -1) | (slots >= blocks * size)]
    if bad.size:
        return f"slots holds {bad[0]}, the cache has slots 0 to {blocks * size - 1}"
    used, counts = np.unique(slots[slots >= 0], return_counts=True)
    if (counts > 1).any():
        return f"slot {used[counts.argmax()]} is written {counts.max()} times"
    return None


@declare(
    args={
        "key": Arg("t h d"),
        "value": Arg("t h d"),
        "key_cache": Arg("b s h d"),
        "value_cache": Arg("b s h d"),
        "slots": Arg("t", "index"),
    },
    returns=(),
    mutates=("key_cache", "value_cache"),
    accuracy=Accuracy.EXACT,
    kind=KernelKind.ATTENTION,
    inputs=_cases,
    statics={
        "block_size": Static(positive_int, "s"),
        "num_kv_heads": Static(positive_int, "h"),
        "head_dim": Static(positive_int, "d"),
    },
    inspect_data=_inspect,
)
def kv_write(key: Array, value: Array, key_cache: Array, value_cache: Array, slots: Array) -> None:
    """Copy each token's key and value into its slot of the caches, in place and bit for bit.

    Slot ``block * block_size + offset`` is ``cache[block, offset]``; a token with slot -1 is
    skipped. No other slot changes. The caches may be strided in any way (their physical order is
    the pool's). Two tokens with one slot, and slots outside of the cache, are undefined.
    """
    used = slots >= 0
    block, offset = np.divmod(slots[used], key_cache.shape[1])
    key_cache[block, offset] = key[used]
    value_cache[block, offset] = value[used]
