"""The paged backend against attention written out in float64, on random steps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_backend import get_provider
from sagellm_backend.attention.paged_metadata import PagedAttentionMetadataBuilder
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.torch_support.paged_attention import PagedAttentionBackend

NAN = float("nan")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
CPU = get_provider("cpu")


@dataclass
class Shape:
    lengths: list[int]
    block_size: int
    heads: int
    kv_heads: int
    head_dim: int


def attend(q, k, v, scale, window=None, softcap=None):
    """Rows of q at the end of k and v, one sequence, one row and head after the other."""
    out = torch.empty(q.shape, dtype=torch.float64)
    q, k, v = q.double(), k.double(), v.double()
    group, first = q.shape[1] // k.shape[1], len(k) - len(q)
    for row in range(len(q)):
        last = first + row + 1
        begin = 0 if window is None else max(0, last - window)
        for head in range(q.shape[1]):
            keys, values = (x[begin:last, head // group] for x in (k, v))
            logits = keys @ q[row, head] * scale
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            out[row, head] = logits.softmax(0) @ values
    return out


def tables(shape, room, seed):
    """Blocks in random order for ``room`` tokens more than the lengths; padded with zeros."""
    needed = [math.ceil((length + room) / shape.block_size) for length in shape.lengths]
    blocks = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(seed))
    table = torch.zeros(len(needed), max(needed) + 1, dtype=torch.int64)
    start = 0
    for row, count in enumerate(needed):
        table[row, :count] = blocks[start : start + count]
        start += count
    return table, len(blocks)


def caches(shape, blocks, dtype):
    size = (blocks, shape.block_size, shape.kv_heads, shape.head_dim)
    return tuple(torch.full(size, NAN, dtype=dtype) for _ in range(2))


def tokens(shape, count, dtype, seed):
    """q, k and v of ``count`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return [torch.randn(count, n, shape.head_dim, generator=generator).to(dtype) for n in heads]


def pad(rows, lengths, width, fill):
    out = torch.full((len(lengths) * width, *rows.shape[1:]), fill, dtype=rows.dtype)
    out.view(len(lengths), width, *rows.shape[1:])[real(lengths, width)] = rows
    return out


def real(lengths, width):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def engine_mask(lengths, width):
    place = torch.arange(width)
    return (place <= place[:, None]) & real(lengths, width)[:, None, None]


shapes = st.builds(
    lambda lengths, block_size, kv_heads, group, head_dim: Shape(
        lengths, block_size, kv_heads * group, kv_heads, head_dim
    ),
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.sampled_from([1, 3, 8, 16]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 3]),
    st.sampled_from([4, 8]),
)
options = st.fixed_dictionaries(
    {
        "window": st.none() | st.integers(1, 24),
        "softcap": st.none() | st.floats(0.5, 30.0),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes,
    limits=options,
    dtype=st.sampled_from(list(TOLERANCE)),
    wider=st.integers(0, 3),
    steps=st.integers(0, 3),
    in_constructor=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_and_padded_prefills_and_decodes_follow_the_definition(
    shape, limits, dtype, wider, steps, in_constructor, seed
):
    lengths, width = shape.lengths, max(shape.lengths) + wider
    given_later = {} if in_constructor else limits
    backend = PagedAttentionBackend(CPU, **(limits if in_constructor else {}))
    builder = PagedAttentionMetadataBuilder(shape.block_size)
    table, blocks = tables(shape, steps, seed)
    scale = 0.4
    q, k, v = tokens(shape, sum(lengths), dtype, seed)
    metadata = builder.build_prefill_metadata(lengths, table)

    packed_cache, padded_cache = (caches(shape, blocks, dtype) for _ in range(2))
    packed = backend.forward(q, k, v, metadata, packed_cache, scale, **given_later)
    padded = backend.forward(
        *(pad(x, lengths, width, NAN) for x in (q, k, v)),
        metadata,
        padded_cache,
        scale,
        engine_mask(lengths, width),
        **given_later,
    )
    kept = real(lengths, width).flatten()
    assert torch.equal(padded[kept], packed)
    assert not padded[~kept].any(), "rows of padding are zeros"
    for one, other in zip(packed_cache, padded_cache, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    written = packed_cache[0].flatten(0, 1)
    assert torch.equal(written[metadata.slot_mapping], k)
    assert int(written.isnan().any(-1).any(-1).sum()) == len(written) - len(k), "more was written"

    history = [[x] for x in k.split(lengths)], [[x] for x in v.split(lengths)]
    check(packed.split(lengths), q.split(lengths), history, scale, limits, TOLERANCE[dtype])
    for step in range(steps):
        context = [length + step for length in lengths]
        q, k, v = tokens(shape, len(lengths), dtype, seed + step + 1)
        metadata = builder.build_decode_metadata(context, table)
        out = backend.forward(q, k, v, metadata, packed_cache, scale, **given_later)
        for kept_keys, new in ((history[0], k), (history[1], v)):
            for row, keys in enumerate(kept_keys):
                keys.append(new[row : row + 1])
        check(out.split(1), q.split(1), history, scale, limits, TOLERANCE[dtype])


def check(out, q, history, scale, limits, tolerance):
    for row, rows in enumerate(out):
        keys, values = (torch.cat(kept[row]) for kept in history)
        expected = attend(q[row], keys, values, scale, **limits)
        torch.testing.assert_close(rows.double(), expected, rtol=0, atol=tolerance)


SHAPE = Shape([5, 9, 3], 4, 4, 2, 8)


@pytest.mark.parametrize("poisoned", range(3))
def test_nan_stays_in_its_sequence(poisoned):
    lengths, (table, blocks) = SHAPE.lengths, tables(SHAPE, 1, 0)
    backend, builder = PagedAttentionBackend(CPU), PagedAttentionMetadataBuilder(4)
    results = []
    for fill in (0.0, NAN):
        cache = caches(SHAPE, blocks, torch.float32)
        outs = []
        for metadata in (
            builder.build_prefill_metadata(lengths, table),
            builder.build_decode_metadata(lengths, table),
        ):
            sizes = metadata.seq_lens
            q, k, v = tokens(SHAPE, sum(sizes), torch.float32, 1)
            k.split(sizes)[poisoned][:] += fill
            v.split(sizes)[poisoned][:] += fill
            outs.append(backend.forward(q, k, v, metadata, cache, 0.3).split(sizes))
        results.append(outs)
    for clean, dirty in zip(*results, strict=True):
        for row, (before, after) in enumerate(zip(clean, dirty, strict=True)):
            assert after.isnan().all() if row == poisoned else torch.equal(before, after)


def test_sequences_may_read_one_block():
    """A common prefix of one block, and a block of its own for each to write."""
    backend, builder = PagedAttentionBackend(CPU), PagedAttentionMetadataBuilder(4)
    shape = Shape([4], 4, 4, 2, 8)
    cache = caches(shape, 3, torch.float32)
    q, k, v = tokens(shape, 4, torch.float32, 2)
    backend.forward(q, k, v, builder.build_prefill_metadata([4], [[2]]), cache, 0.3)
    q1, k1, v1 = tokens(shape, 2, torch.float32, 3)
    metadata = builder.build_decode_metadata([4, 4], [[2, 0], [2, 1]])
    out = backend.forward(q1, k1, v1, metadata, cache, 0.3)
    for row in range(2):
        keys, values = torch.cat((k, k1[row : row + 1])), torch.cat((v, v1[row : row + 1]))
        expected = attend(q1[row : row + 1], keys, values, 0.3)
        torch.testing.assert_close(out[row : row + 1].double(), expected, rtol=0, atol=2e-5)


def test_a_window_in_the_mask_must_be_that_of_the_backend():
    backend, builder = PagedAttentionBackend(CPU), PagedAttentionMetadataBuilder(4)
    lengths, (table, blocks) = [6, 2], tables(SHAPE, 0, 0)
    shape = Shape(lengths, 4, 4, 2, 8)
    cache = caches(shape, blocks, torch.float32)
    metadata = builder.build_prefill_metadata(lengths, table[:2])
    rows = [pad(x, lengths, 6, 0.0) for x in tokens(shape, 8, torch.float32, 1)]
    place = torch.arange(6)
    mask = engine_mask(lengths, 6) & (place > place[:, None] - 3)
    arguments = (*rows, metadata, cache, 0.3, mask)
    plain = backend.forward(*arguments[:-1], window=3)
    assert torch.equal(backend.forward(*arguments, window=3), plain)
    for window in (None, 2):
        with pytest.raises(InvalidArgumentError, match=f"window {window}"):
            backend.forward(*arguments, window=window)


def test_the_mask_is_looked_at_once_in_a_step(monkeypatch):
    from sagellm_backend.torch_support import paged_tensors

    looks = []
    agrees = paged_tensors._agrees
    monkeypatch.setattr(paged_tensors, "_agrees", lambda *a: looks.append(1) or agrees(*a))
    backend = PagedAttentionBackend(CPU)
    metadata = PagedAttentionMetadataBuilder(4).build_prefill_metadata([2, 1], [[0], [1]])
    shape = Shape([2, 1], 4, 4, 2, 8)
    rows, mask = tokens(shape, 4, torch.float32, 0), engine_mask([2, 1], 2)
    for _ in range(4):
        backend.forward(*rows, metadata, caches(shape, 2, torch.float32), 0.3, mask)
    assert len(looks) == 1


def test_what_the_engine_reads():
    builder = PagedAttentionMetadataBuilder(device=torch.device("cpu"))
    prefill = builder.build_prefill_metadata([17, 2], torch.tensor([[3, 1], [5, 0]]))
    assert prefill.slot_mapping.tolist() == [*range(48, 64), 16, 80, 81]
    assert prefill.slot_mapping.dtype is prefill.block_tables.dtype is torch.int64
    assert prefill.block_tables.tolist() == [[3, 1], [5, 0]]
    assert (prefill.seq_lens, prefill.context_lens, prefill.max_seq_len) == ([17, 2], None, 17)
    assert (prefill.num_tokens, prefill.num_prefill_tokens, prefill.num_decode_tokens) == (
        19,
        19,
        0,
    )
    assert (prefill.is_prefill, prefill.block_size, prefill.extra) == (True, 16, {})
    assert prefill.device == torch.device("cpu")
    decode = builder.build_decode_metadata([17, 0], torch.tensor([[3, 1], [5, 0]]))
    assert decode.slot_mapping.tolist() == [17, 80]
    assert (decode.seq_lens, decode.context_lens, decode.max_seq_len) == ([1, 1], [17, 0], 18)
    assert (decode.num_tokens, decode.num_prefill_tokens, decode.num_decode_tokens) == (2, 0, 2)
    assert not decode.is_prefill


def test_what_the_backend_says_of_itself():
    backend = PagedAttentionBackend()
    assert (backend.name, backend.supports_paged_attention) == ("paged", True)
    assert backend.supports_sliding_window
    assert backend.supports_softcap
    assert backend.get_kv_cache_shape(512, 16, 2, 8) == (512, 16, 2, 8)


def test_what_attention_cannot_do_is_not_claimed(monkeypatch):
    backend = PagedAttentionBackend(CPU)
    monkeypatch.setattr(
        CPU, "supports", lambda name, **static: ["no"] if "window" in static else []
    )
    assert not backend.supports_sliding_window
    assert backend.supports_softcap


def test_a_provider_of_another_framework_is_refused():
    from sagellm_backend.reference.provider import ReferenceProvider

    with pytest.raises(CapabilityError, match="numpy"):
        PagedAttentionBackend(ReferenceProvider())


def test_the_guide_does_what_it_says():
    guide = Path(__file__).parents[3] / "docs" / "engines.md"
    section = guide.read_text(encoding="utf-8").partition("## The published engine's paged path")[2]
    names = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    assert names["backend"].name == "paged"
    assert names["out"].shape == (2, 4, 64)
    assert sum(int(cache.any(-1).any(-1).sum()) for cache in names["cache"]) == 2 * (20 + 5 + 2)
