"""Cases of attention: every mode, awkward lengths, poison where nothing may be read, and needles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sagellm_backend.attention.metadata import AttentionMetadata
from sagellm_backend.dtypes import DType
from sagellm_backend.ops.cases import Array, Case, normal

Lengths = list[int]


def attention_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    """Cases for all modes; paged ones come with shuffled blocks, and NaN in every unused slot."""
    yield from _ragged(rng, dtype)
    yield from _paged(rng, dtype)
    yield from _needles(rng, dtype)


def _ragged(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, query, heads, kv_heads, size, options in (
        ("one", [1], 1, 1, 8, {}),
        ("unequal", [5, 1, 17], 4, 4, 64, {}),
        ("gqa2", [9, 30], 8, 4, 32, {}),
        ("mqa8", [3, 12], 8, 1, 80, {}),
        ("window", [40, 7], 2, 2, 16, {"window": 5}),
        ("window-one", [6], 2, 1, 16, {"window": 1}),
        ("softcap", [21], 4, 2, 64, {"softcap": 5.0}),
        ("bidirectional", [13, 4], 2, 2, 32, {"causal": False}),
        ("sinks", [9, 30], 8, 4, 32, {"sinks": 2.0}),
    ):
        yield _random(
            rng, dtype, f"ragged-{label}", query, query, (heads, kv_heads, size), **options
        )
    yield _random(rng, dtype, "ragged-longer-keys", [3, 8], [10, 8], (4, 2, 32))


def _paged(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    edges: Lengths = [15, 16, 17, 1, 33, 64]
    for label, query, kv, shape, size, options in (
        ("prefill-chunk", [4, 16, 1], [20, 16, 33], (4, 2, 64), 16, {}),
        ("prefill-edges", [15, 16, 17], [15, 32, 49], (8, 1, 32), 16, {}),
        ("prefill-window", [9, 5], [40, 5], (2, 2, 16), 8, {"window": 7}),
        ("prefill-softcap", [9, 5], [40, 5], (2, 1, 16), 8, {"softcap": 3.0}),
        ("prefill-bidirectional", [6, 3], [14, 3], (2, 2, 16), 4, {"causal": False}),
        ("prefill-sinks", [9, 5], [40, 5], (4, 2, 16), 8, {"sinks": 2.0, "window": 7}),
        ("decode-one", [1], [1], (1, 1, 8), 16, {}),
        ("decode-edges", [1] * 6, edges, (4, 4, 64), 16, {}),
        ("decode-gqa2", [1] * 6, edges, (4, 2, 64), 16, {}),
        ("decode-gqa4", [1] * 6, edges, (8, 2, 128), 16, {}),
        ("decode-gqa8", [1] * 3, [31, 32, 200], (8, 1, 64), 32, {}),
        ("decode-block1", [1, 1], [5, 3], (2, 1, 16), 1, {}),
        ("decode-window", [1, 1, 1], [50, 3, 16], (4, 2, 32), 16, {"window": 16}),
        ("decode-softcap", [1, 1], [50, 19], (4, 2, 32), 16, {"softcap": 10.0}),
        ("decode-sinks", [1, 1, 1], [50, 1, 700], (8, 2, 64), 16, {"sinks": 2.0}),
        ("decode-sinks-high", [1, 1], [50, 19], (4, 2, 32), 16, {"sinks": 12.0, "softcap": 10.0}),
    ):
        yield _random(rng, dtype, label, query, kv, shape, size, **options)


def _random(
    rng: np.random.Generator,
    dtype: DType,
    label: str,
    query: Lengths,
    kv: Lengths,
    shape: tuple[int, int, int],
    block_size: int | None = None,
    sinks: float | None = None,
    **options: Any,
) -> Case:
    """Normal data, with queries four times as large so that the logits have a wide range.

    ``sinks`` are spread by so much about 0: some heads give most of their weight away, some none.
    """
    heads, kv_heads, size = shape
    k, v = (normal(rng, dtype, sum(kv), kv_heads, size) for _ in range(2))
    q = normal(rng, dtype, sum(query), heads, size, scale=4.0)
    placed = _place(rng, query, kv, k, v, block_size)
    if sinks is not None:
        options["sinks"] = rng.normal(0.0, sinks, heads).astype(np.float32)
    return Case(label, q=q, **placed, scale=size**-0.5, **options)


def _place(
    rng: np.random.Generator, query: Lengths, kv: Lengths, k: Array, v: Array, size: int | None
) -> dict[str, Any]:
    """Packed keys and values as they are, or in a cache with shuffled blocks and poison."""
    if size is None:
        return {"k": k, "v": v, "metadata": AttentionMetadata.build(query, kv)}
    counts = [-(-length // size) for length in kv]
    order = iter(rng.permutation(sum(counts) + 3).tolist())
    table = [[next(order) for _ in range(count)] for count in counts]
    metadata = AttentionMetadata.build(query, kv, table, size)
    caches = [np.full((sum(counts) + 3, size, *k.shape[1:]), np.nan, k.dtype) for _ in range(2)]
    for sequence, blocks in enumerate(table):
        position = np.arange(kv[sequence])
        where = np.array(blocks)[position // size], position % size
        rows = slice(metadata.cu_kv[sequence], metadata.cu_kv[sequence + 1])
        caches[0][where], caches[1][where] = k[rows], v[rows]
    return {"k": caches[0], "v": caches[1], "metadata": metadata}


def _needles(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    """One key is aligned with the query, and its value says which: the answer has no tolerance."""
    length, size = 179, 16
    targets = [0, 1, 15, 16, 17, 63, 64, 89, 162, 163, length - 2, length - 1]
    decode = [1] * len(targets), [length] * len(targets)
    yield _needle(rng, dtype, "decode-needle", *decode, targets, size)
    query, kv = [33, 18], [33, 50]
    own = [*range(33), *range(32, 50)]
    for label, targets in (("own", own), ("first", [0] * len(own))):
        yield _needle(rng, dtype, f"ragged-needle-{label}", query, kv, targets, None)
        yield _needle(rng, dtype, f"prefill-needle-{label}", query, kv, targets, size)


def _needle(
    rng: np.random.Generator,
    dtype: DType,
    label: str,
    query: Lengths,
    kv: Lengths,
    targets: Lengths,
    block_size: int | None,
) -> Case:
    heads, kv_heads, size = 8, 2, 64
    total, start = sum(kv), np.repeat(np.cumsum([0, *kv[:-1]]), query)
    k = rng.choice([-1.0, 1.0], (total, kv_heads, size))
    aligned = k[start + np.array(targets)]
    q = np.repeat(aligned, heads // kv_heads, axis=1)
    position = np.concatenate([np.arange(length) for length in kv])
    v = np.ones((total, kv_heads, size))
    v[:, :, 0] += (position % 128)[:, None]
    v[:, :, 1] += (position // 128)[:, None]
    v[:, :, 2] += np.arange(kv_heads)
    k, v, q = (array.astype(dtype.numpy) for array in (k, v, q))
    placed = _place(rng, query, kv, k, v, block_size)
    # Aligned keys score 2 * 64, others 2 * N(0, 64): tens apart, so every other weight vanishes.
    return Case(label, exact=True, q=q, **placed, scale=2.0)
