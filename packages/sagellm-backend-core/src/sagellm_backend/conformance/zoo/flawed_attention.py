"""Attention with knobs: each turns one thing wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.ops.cases import Array, f64

Gather = Callable[[Array, AttentionMetadata, int, bool], Array]


def paged(cache: Array, metadata: AttentionMetadata, blocks: Array) -> Array:
    """The tokens in ``blocks`` of a cache, slot by slot, to the end of the last block."""
    del metadata
    found: Array = cache[blocks].reshape(-1, *cache.shape[2:])
    return found


def blocks_of(metadata: AttentionMetadata, sequence: int) -> Array:
    """The blocks that hold tokens of a sequence, in order."""
    assert metadata.block_table is not None
    assert metadata.block_size is not None
    found: Array = metadata.block_table[
        sequence, : -(-int(metadata.kv_lens[sequence]) // metadata.block_size)
    ]
    return found


def gather(cache: Array, metadata: AttentionMetadata, sequence: int, values: bool) -> Array:
    """The keys, or the values, of one sequence."""
    del values
    length = int(metadata.kv_lens[sequence])
    if metadata.block_table is None:
        start = int(metadata.cu_kv[sequence])
        return cache[start : start + length]
    return paged(cache, metadata, blocks_of(metadata, sequence))[:length]


def softmax(logits: Array) -> Array:
    """Weights over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


@dataclass(frozen=True)
class FlawedAttention:
    """A kernel of ``attention``; as it stands by default, a correct one.

    ``head_of`` gives the kv head of (query head, group size, kv heads), ``first`` the position of
    the first query of (query length, kv length), ``scaled`` the factor of (scale, head size).
    ``sink_of`` gives the sink of (sinks, query head, group size), ``sunk`` the logits that stand for
    it, of (sink, scale, softcap, kv length). ``ahead`` and ``behind`` are keys seen beyond the mask
    and beyond the window.
    """

    gather: Gather = gather
    weigh: Callable[[Array], Array] = softmax
    head_of: Callable[[int, int, int], int] = lambda head, group, _: head // group
    first: Callable[[int, int], int] = lambda query_len, kv_len: kv_len - query_len
    scaled: Callable[[float, int], float] = lambda scale, _: scale
    capped: Callable[[Array, float], Array] = lambda logits, cap: cap * np.tanh(logits / cap)
    sink_of: Callable[[Array, int, int], float] = lambda sinks, head, _: float(sinks[head])
    sunk: Callable[[float, float, float | None, int], list[float]] = lambda sink, *_: [sink]
    mask: Callable[[bool], bool] = lambda causal: causal
    ahead: int = 0
    behind: int = 0

    def __call__(
        self,
        q: Array,
        k: Array,
        v: Array,
        metadata: AttentionMetadata,
        *,
        scale: float,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
    ) -> Array:
        """The rows of every sequence, head by head, in float64."""
        result = np.zeros(q.shape)
        kv_heads = k.shape[-2]
        for sequence in range(metadata.batch):
            rows = slice(int(metadata.cu_query[sequence]), int(metadata.cu_query[sequence + 1]))
            keys = f64(self.gather(k, metadata, sequence, False))
            values = f64(self.gather(v, metadata, sequence, True))
            count, length = rows.stop - rows.start, int(metadata.kv_lens[sequence])
            position = self.first(count, length) + np.arange(count)[:, None]
            seen = self._seen(position, len(keys), length, window, causal=causal)
            for head in range(q.shape[1]):
                group = q.shape[1] // kv_heads
                other = self.head_of(head, group, kv_heads)
                factor = self.scaled(scale, q.shape[2])
                logits = f64(q[rows, head]) @ keys[:, other].T * factor
                if softcap is not None:
                    logits = self.capped(logits, softcap)
                logits = np.where(seen, logits, -np.inf)
                if sinks is not None:
                    sink = self.sink_of(sinks, head, group)
                    extra = self.sunk(sink, scale, softcap, length)
                    logits = np.pad(logits, ((0, 0), (0, len(extra))))
                    logits[:, logits.shape[1] - len(extra) :] = extra
                weights = self.weigh(logits)[:, : len(keys)]
                result[rows, head] = weights @ values[:, other]
        return result

    def _seen(
        self, position: Array, keys: int, length: int, window: int | None, *, causal: bool
    ) -> Array:
        key = np.arange(keys)[None, :]
        seen: Array = np.broadcast_to(key < length, (len(position), keys)).copy()
        if self.mask(causal):
            seen &= key <= position + self.ahead
        if window is not None:
            seen &= key > position - window - self.behind
        return seen
