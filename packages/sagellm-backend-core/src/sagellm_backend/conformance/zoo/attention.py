"""Faults of attention: masks, scales, heads, tables, and what must not be read."""

from __future__ import annotations

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.zoo.flawed_attention import (
    FlawedAttention,
    blocks_of,
    gather,
    paged,
    softmax,
)
from sagellm_backend.conformance.zoo.member import kernel_fault
from sagellm_backend.dtypes import DType
from sagellm_backend.ops.cases import Array


def _first_blocks(cache: Array, metadata: AttentionMetadata, sequence: int, values: bool) -> Array:
    if metadata.block_table is None:
        return gather(cache, metadata, sequence, values)
    blocks = np.arange(len(blocks_of(metadata, sequence)))
    return paged(cache, metadata, blocks)[: metadata.kv_lens[sequence]]


def _values_backwards(
    cache: Array, metadata: AttentionMetadata, sequence: int, values: bool
) -> Array:
    if metadata.block_table is None or not values:
        return gather(cache, metadata, sequence, values)
    blocks = blocks_of(metadata, sequence)[::-1]
    return paged(cache, metadata, blocks)[: metadata.kv_lens[sequence]]


def _table_of_int64(
    cache: Array, metadata: AttentionMetadata, sequence: int, values: bool
) -> Array:
    """Of int32 ids read as int64, the low half of every second one is left."""
    if metadata.block_table is None:
        return gather(cache, metadata, sequence, values)
    blocks = blocks_of(metadata, sequence)
    words = np.resize(blocks[::2], len(blocks))
    return paged(cache, metadata, words)[: metadata.kv_lens[sequence]]


def _unshared(cache: Array, metadata: AttentionMetadata, sequence: int, values: bool) -> Array:
    if metadata.block_table is None:
        return gather(cache, metadata, sequence, values)
    blocks = blocks_of(metadata, sequence)
    taken = np.isin(blocks, metadata.block_table[:sequence])
    other = np.where(taken, (blocks + 1) % len(cache), blocks)
    return paged(cache, metadata, other)[: metadata.kv_lens[sequence]]


def _last_columns(cache: Array, metadata: AttentionMetadata, sequence: int, values: bool) -> Array:
    if metadata.block_table is None:
        return gather(cache, metadata, sequence, values)
    blocks = metadata.block_table[sequence, -len(blocks_of(metadata, sequence)) :]
    return paged(cache, metadata, blocks)[: metadata.kv_lens[sequence]]


def _whole_blocks(cache: Array, metadata: AttentionMetadata, sequence: int, values: bool) -> Array:
    if metadata.block_table is None:
        return gather(cache, metadata, sequence, values)
    return paged(cache, metadata, blocks_of(metadata, sequence))


def _row_of_first_sequence(
    cache: Array, metadata: AttentionMetadata, sequence: int, values: bool
) -> Array:
    if metadata.block_table is None:
        return gather(cache, metadata, sequence, values)
    row = np.maximum(metadata.block_table[0], 0)
    blocks = np.resize(row, len(blocks_of(metadata, sequence)))
    return paged(cache, metadata, blocks)[: metadata.kv_lens[sequence]]


def _without_last(cache: Array, metadata: AttentionMetadata, sequence: int, values: bool) -> Array:
    found = gather(cache, metadata, sequence, values)
    return found[: max(len(found) - 1, 1)]


def _stale_last_value(
    cache: Array, metadata: AttentionMetadata, sequence: int, values: bool
) -> Array:
    found = gather(cache, metadata, sequence, values)
    if values and len(found) > 1:
        found = np.concatenate([found[:-1], found[-2:-1]])
    return found


def _without_maximum(logits: Array) -> Array:
    powers = np.exp(logits.astype(np.float32))
    found: Array = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float64)
    return found


def _from_bf16(logits: Array) -> Array:
    return softmax(logits.astype(DType.BF16.numpy).astype(np.float64))


def _sum_in_fp16(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True)).astype(np.float16)
    total = np.cumsum(powers, axis=-1, dtype=np.float16)[..., -1:]
    found: Array = powers.astype(np.float64) / total.astype(np.float64)
    return found


_FAULTS = {
    "sees-one-ahead": ("The mask lets the next key through", FlawedAttention(ahead=1)),
    "misses-itself": ("The mask hides a query's own key", FlawedAttention(ahead=-1)),
    "is-never-causal": ("Nothing is masked", FlawedAttention(mask=lambda _: False)),
    "is-always-causal": ("causal=False is ignored", FlawedAttention(mask=lambda _: True)),
    "counts-from-zero": (
        "Queries stand at the first positions, not at the last",
        FlawedAttention(first=lambda *_: 0),
    ),
    "misses-last-key": ("The last key is not read", FlawedAttention(gather=_without_last)),
    "reads-stale-value": (
        "The last value is that of the token before",
        FlawedAttention(gather=_stale_last_value),
    ),
    "window-is-one-wider": ("The window holds one key more", FlawedAttention(behind=1)),
    "window-is-one-narrower": ("The window holds one key less", FlawedAttention(behind=-1)),
    "ignores-window": ("The window is ignored", FlawedAttention(behind=1 << 30)),
    "ignores-softcap": (
        "The softcap is ignored",
        FlawedAttention(capped=lambda logits, _: logits),
    ),
    "caps-without-scaling-back": (
        "The softcap gives tanh(logit / c) without c",
        FlawedAttention(capped=lambda logits, cap: np.tanh(logits / cap)),
    ),
    "ignores-sinks": ("The sinks are ignored", FlawedAttention(sunk=lambda *_: [])),
    "scales-sinks": (
        "The sinks are scaled as logits are",
        FlawedAttention(sunk=lambda sink, scale, *_: [sink * scale]),
    ),
    "caps-sinks": (
        "The softcap is applied to the sinks too",
        FlawedAttention(sunk=lambda sink, _, cap, __: [cap * np.tanh(sink / cap) if cap else sink]),
    ),
    "counts-sinks-in-every-split": (
        "Each part of 256 keys has its sink",
        FlawedAttention(sunk=lambda sink, _, __, length: [sink] * -(-length // 256)),
    ),
    "reads-sinks-by-kv-head": (
        "A head has the sink of its kv head's number",
        FlawedAttention(sink_of=lambda sinks, head, group: float(sinks[head // group])),
    ),
    "scales-twice": (
        "1 / sqrt(d) is applied beside the scale",
        FlawedAttention(scaled=lambda scale, size: scale * size**-0.5),
    ),
    "ignores-scale": ("The scale is ignored", FlawedAttention(scaled=lambda *_: 1.0)),
    "scale-is-slightly-off": (
        "The scale is that of a head of one dimension more",
        FlawedAttention(scaled=lambda scale, size: scale * (size / (size + 1)) ** 0.5),
    ),
    "interleaves-heads": (
        "Query head h reads kv head h % hk",
        FlawedAttention(head_of=lambda head, _, heads: head % heads),
    ),
    "reads-first-kv-head": (
        "Every query head reads the first kv head",
        FlawedAttention(head_of=lambda *_: 0),
    ),
    "overflows": (
        "The softmax does not subtract the maximum",
        FlawedAttention(weigh=_without_maximum),
    ),
    "rounds-scores": ("Logits are rounded to bf16", FlawedAttention(weigh=_from_bf16)),
    "sums-in-fp16": ("The softmax adds up in fp16", FlawedAttention(weigh=_sum_in_fp16)),
    "ignores-block-table": (
        "Blocks are read from the first on, whatever the table says",
        FlawedAttention(gather=_first_blocks),
    ),
    "reads-table-of-first-sequence": (
        "Every sequence reads the blocks of the first",
        FlawedAttention(gather=_row_of_first_sequence),
    ),
    "swaps-value-blocks": (
        "Value blocks are read in the opposite order",
        FlawedAttention(gather=_values_backwards),
    ),
    "takes-int32-table-for-int64": (
        "The block table is read as int64",
        FlawedAttention(gather=_table_of_int64),
    ),
    "reads-shared-blocks-once": (
        "A block that an earlier sequence has is taken for another",
        FlawedAttention(gather=_unshared),
    ),
    "reads-tables-from-the-end": (
        "The last columns of the table are read, padded or not",
        FlawedAttention(gather=_last_columns),
    ),
    "leaks-nan": (
        "Slots without a token are multiplied by a weight of 0",
        FlawedAttention(gather=_whole_blocks),
    ),
}

_ALSO = {
    "misses-last-key": ("attention.needles",),
    "sees-one-ahead": ("attention.hidden_tokens",),
    "reads-shared-blocks-once": ("attention.shared_prefix",),
    "reads-tables-from-the-end": ("attention.padding_of_tables",),
    "leaks-nan": ("attention.unused_slots", "kv.free_blocks_never_reach_attention"),
    "ignores-block-table": ("attention.permuted_blocks",),
    "takes-int32-table-for-int64": ("attention.attention_over_a_pool",),
}

for _name, (_text, _kernel) in _FAULTS.items():
    kernel_fault(
        "attention",
        _text,
        kills=_ALSO.get(_name, ("attention.attention",)),
        profile="attention",
        name=f"attention-{_name}",
    )(_kernel)
