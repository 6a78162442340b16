"""Attention in plain Paddle: gather the blocks of sequences, then two products and a softmax.

Logits and weights are fp32. Caches are gathered as they lie in memory: Paddle would first copy the
whole of a strided one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import paddle

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.kunlun.misuse import FLOATING, MisuseError
from sagellm_backend.kunlun.softmax import softmax_of
from sagellm_backend.ops.statics import boolean, positive_int, positive_real

GATHERED = 1 << 28
"""Bytes of keys, and as many of values, that a decode step gathers at a time."""

_KEY = "paddle.step"


class Step(NamedTuple):
    """Blocks (batch, width), 0 where none is, and lengths (batch) of a step, int64 on a device."""

    table: Any
    kv_lens: Any


def prepare(metadata: AttentionMetadata, place: Any) -> Step | None:
    """The step of ``metadata`` on ``place``, made at the first call; ``None`` where it is ragged."""
    if metadata.block_table is None:
        return None
    key = (_KEY, str(place))
    found: Step | None = metadata.native.get(key)
    if found is None:
        table = metadata.block_table.clip(0).astype(np.int64)
        lengths = metadata.kv_lens.astype(np.int64)
        found = Step(paddle.to_tensor(table, place=place), paddle.to_tensor(lengths, place=place))
        metadata.native[key] = found
    return found


def attention(
    q: Any,
    k: Any,
    v: Any,
    metadata: AttentionMetadata,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Any | None = None,
) -> Any:
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "sinks": sinks}
    check(q, k, v, metadata, causal=causal, window=window, **options)
    step = prepare(metadata, q.place)
    if step is not None and metadata.mode == "paged_decode":
        return _decode(q, k, v, step, window, **options)
    out = []
    for sequence in range(metadata.batch):
        first, last = (int(metadata.cu_query[sequence + edge]) for edge in (0, 1))
        keys, values = _keys_of(sequence, k, v, metadata, step)
        seen = _mask(last - first, keys.shape[1], causal, window, q.place)
        rows = paddle.transpose(q[first:last], [1, 0, 2])
        out.append(paddle.transpose(_attend(rows, keys, values, seen, **options), [1, 0, 2]))
    return paddle.concat(out)


def check(
    q: Any,
    k: Any,
    v: Any,
    metadata: AttentionMetadata,
    *,
    sinks: Any | None = None,
    **options: Any,
) -> None:
    """Raise :class:`MisuseError` for arguments that :func:`attention` does not take."""
    paged = metadata.block_table is not None
    if q.ndim != 3 or k.ndim != 3 + paged or k.shape != v.shape:
        raise MisuseError
    if q.shape[0] != metadata.cu_query[-1] or q.shape[-1] != k.shape[-1] or 0 in k.shape[-2:]:
        raise MisuseError
    if q.shape[1] % k.shape[-2] or 0 in q.shape[1:]:
        raise MisuseError
    if not (q.dtype == k.dtype == v.dtype and q.dtype in FLOATING):
        raise MisuseError
    _check_options(**options)
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.dtype != paddle.float32):
        raise MisuseError
    if not paged:
        if k.shape[0] != metadata.cu_kv[-1]:
            raise MisuseError
        return
    if k.shape[1] != metadata.block_size:
        raise MisuseError
    metadata.check_blocks(k.shape[0])


def _check_options(scale: Any, causal: Any, window: Any, softcap: Any) -> None:
    if positive_real(scale) or boolean(causal):
        raise MisuseError
    if window is not None and positive_int(window):
        raise MisuseError
    if softcap is not None and positive_real(softcap):
        raise MisuseError


def lying_of(cache: Any) -> tuple[Any, bool]:
    """A cache (blocks, size, heads, dim) as it lies in memory, and whether heads lie before tokens."""
    if not cache.is_contiguous():
        swapped = paddle.transpose(cache, [0, 2, 1, 3])
        if swapped.is_contiguous():
            return swapped, True
    return cache, False


def gather(cache: Any, blocks: Any) -> Any:
    """Blocks of a cache (blocks, size, heads, dim), heads before tokens: (n, heads, size, dim)."""
    lying, swapped = lying_of(cache)
    found = paddle.index_select(lying, blocks)
    return found if swapped else paddle.transpose(found, [0, 2, 1, 3])


def _keys_of(
    sequence: int, k: Any, v: Any, metadata: AttentionMetadata, step: Step | None
) -> tuple[Any, Any]:
    """Keys and values of one sequence: (kv_heads, kv_len, dim) each."""
    if step is None:
        first, last = (int(metadata.cu_kv[sequence + edge]) for edge in (0, 1))
        return tuple(paddle.transpose(one[first:last], [1, 0, 2]) for one in (k, v))
    length, size = int(metadata.kv_lens[sequence]), k.shape[1]
    blocks = step.table[sequence, : -(-length // size)]
    # Only what is in use is kept: free slots may hold NaN.
    return tuple(
        paddle.reshape(
            paddle.transpose(gather(cache, blocks), [1, 0, 2, 3]),
            [cache.shape[2], -1, cache.shape[3]],
        )[:, :length]
        for cache in (k, v)
    )


def _mask(queries: int, keys: int, causal: bool, window: int | None, place: Any) -> Any | None:
    """Which key each query may see, or ``None`` for all."""
    if queries == 1 and (window is None or window >= keys):
        return None
    if not causal and window is None:
        return None
    key = np.arange(keys)
    query = np.arange(keys - queries, keys)[:, None]
    seen = key <= query if causal else np.ones((queries, keys), bool)
    if window is not None:
        seen &= key > query - window
    return paddle.to_tensor(seen, place=place)


def _attend(
    rows: Any,
    keys: Any,
    values: Any,
    seen: Any | None,
    *,
    scale: float,
    softcap: float | None,
    sinks: Any | None,
) -> Any:
    """Rows (heads, queries, dim) against keys and values (kv_heads, keys, dim)."""
    heads, queries, dim = rows.shape
    kv_heads = keys.shape[0]
    # The queries of a group are rows against one key head: no copy of the keys is made.
    grouped = paddle.reshape(rows, [kv_heads, heads // kv_heads * queries, dim])
    logits = paddle.reshape(_logits(grouped, keys, scale, softcap), [heads, queries, -1])
    if seen is not None:
        logits = paddle.where(seen, logits, paddle.full_like(logits, -float("inf")))
    if sinks is not None:
        sinks = paddle.reshape(sinks, [heads, 1, 1])
    weights = paddle.reshape(_weights(logits, sinks), [kv_heads, -1, keys.shape[1]])
    out = paddle.matmul(weights, paddle.cast(values, "float32"))
    return paddle.cast(paddle.reshape(out, [heads, queries, dim]), rows.dtype)


def _logits(rows: Any, keys: Any, scale: float, softcap: float | None) -> Any:
    rows, keys = paddle.cast(rows, "float32"), paddle.cast(keys, "float32")
    logits = paddle.scale(paddle.matmul(rows, keys, transpose_y=True), float(scale))
    if softcap is None:
        return logits
    return paddle.scale(paddle.tanh(paddle.scale(logits, 1 / float(softcap))), float(softcap))


def _weights(logits: Any, sinks: Any | None) -> Any:
    """The softmax of the last axis; ``sinks``, which broadcast to a column, take a share of it."""
    if sinks is None:
        return softmax_of(logits)
    column = paddle.expand(sinks, [*logits.shape[:-1], 1])
    return softmax_of(paddle.concat([logits, column], axis=-1))[..., :-1]


def _decode(q: Any, k: Any, v: Any, step: Step, window: int | None, **options: Any) -> Any:
    """One token of each sequence against its blocks, all of the table's width, the rest masked.

    So many sequences are gathered at a time as :data:`GATHERED` has room for.
    """
    batch, width = step.table.shape
    rows = max(1, GATHERED // (width * 4 * int(np.prod(k.shape[1:]))))
    parts = [
        _decode_some(
            q[first : first + rows],
            k,
            v,
            Step(step.table[first : first + rows], step.kv_lens[first : first + rows]),
            window,
            **options,
        )
        for first in range(0, batch, rows)
    ]
    return paddle.concat(parts) if len(parts) > 1 else parts[0]


def _decode_some(
    q: Any,
    k: Any,
    v: Any,
    step: Step,
    window: int | None,
    *,
    scale: float,
    softcap: float | None,
    sinks: Any | None,
) -> Any:
    batch, heads, dim = q.shape
    size, kv_heads = k.shape[1:3]
    width = step.table.shape[1]
    position = paddle.unsqueeze(paddle.arange(width * size, dtype="int64", device=q.place), 0)
    lengths = paddle.unsqueeze(step.kv_lens, 1)
    used = paddle.less_than(position, lengths)
    slots = paddle.reshape(used, [batch, 1, -1, 1])
    blocks = paddle.flatten(step.table)
    keys, values = (_of_batch(gather(cache, blocks), batch, slots) for cache in (k, v))
    seen = used
    if window is not None:
        oldest = paddle.subtract(lengths, paddle.full_like(lengths, 1 + window))
        seen = paddle.logical_and(used, paddle.greater_than(position, oldest))
    rows = paddle.reshape(q, [batch, kv_heads, heads // kv_heads, dim])
    logits = _logits(rows, keys, scale, softcap)
    mask = paddle.reshape(seen, [batch, 1, 1, -1])
    logits = paddle.where(mask, logits, paddle.full_like(logits, -float("inf")))
    if sinks is not None:
        sinks = paddle.reshape(sinks, [1, kv_heads, -1, 1])
    out = paddle.matmul(_weights(logits, sinks), values)
    return paddle.cast(paddle.reshape(out, [batch, heads, dim]), q.dtype)


def _of_batch(blocks: Any, batch: int, used: Any) -> Any:
    """Gathered blocks as fp32 (batch, kv_heads, tokens, dim). Free slots, which may hold NaN, are 0."""
    _, heads, size, dim = blocks.shape
    tokens = paddle.transpose(
        paddle.reshape(blocks, [batch, -1, heads, size, dim]), [0, 2, 1, 3, 4]
    )
    wide = paddle.cast(paddle.reshape(tokens, [batch, heads, -1, dim]), "float32")
    return paddle.where(used, wide, paddle.zeros_like(wide))
