"""Attention over a paged cache: keys and values are read once, for all queries that share them.

The online softmax of FlashAttention, over KEYS keys at a time, split over the context as in
FlashDecoding. Powers are of two, so that ``log2(e)`` is part of the scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled.paged_rows import (
    KEYS,
    OUTPUT,
    TILE,
    begin_of,
    bound,
    finish_of,
    leave,
    merge,
    put,
    state_bytes,
    weigh,
)
from sagellm_backend.cpu.compiled.paged_tiles import outputs_of, scores_of
from sagellm_backend.cpu.compiled.storage import (
    arrive,
    int32,
    next_chunk,
    set_int32,
    set_word,
    word,
)
from sagellm_backend.cpu.compiled.vectors import jit


@jit
def list_keys(words: int, place: int, sequence: int, first: int, count: int, quarter: int) -> None:
    """Addresses of the rows of keys and values from ``first``, for kv head 0; the last is repeated.

    With a quarter of their number, keys that are so far apart follow one another, which lie in
    several pages at once: a processor fetches ahead within each.
    """
    size = word(words, w.BLOCK_SIZE)
    table = word(words, w.BLOCKS) + 4 * sequence * word(words, w.BLOCK_ROW)
    column = first // size
    slot = first - column * size
    key = value = 0
    for number in range(KEYS):
        if number < count:
            block = int32(table, column)
            key = word(words, w.K) + block * word(words, w.K_BLOCK) + slot * word(words, w.K_SLOT)
            value = word(words, w.V) + block * word(words, w.V_BLOCK) + slot * word(words, w.V_SLOT)
            slot += 1
            if slot == size:
                slot, column = 0, column + 1
        at = number
        if quarter:
            part = number // quarter
            at = 4 * (number - part * quarter) + part
        set_word(place, at, key)
        set_word(place, KEYS + at, value)


@jit
def visible(bounds: int, rows: int, first: int, count: int) -> int:
    """A quarter of the keys if all rows see all of them, so that their order does not matter."""
    if count < KEYS:
        return 0
    for row in range(rows):
        if word(bounds, 2 * row) > first or word(bounds, 2 * row + 1) < first + count:
            return 0
    return KEYS // 4


def step_of(dtype: str) -> Callable[..., Any]:
    """A step over at most KEYS keys, for at most TILE rows of all heads; how many rows it was for."""
    scores1, scores2, scores4, scores8 = (scores_of(dtype, rows) for rows in (1, 2, 4, 8))
    outputs1, outputs2, outputs4, outputs8 = (outputs_of(dtype, rows) for rows in (1, 2, 4, 8))

    @jit
    def step(
        words: int,
        scratch: int,
        states: int,
        row: int,
        rows: int,
        head: int,
        heads: int,
        keys: int,
        ahead: int,
        first: int,
        count: int,
    ) -> int:
        dim, stride = word(words, w.DIM), state_bytes(words)
        each, scores = word(words, w.ROWS) * stride, scratch + w.LISTS
        bounds, state = scratch + w.HEADER + 16 * row, states + row * stride
        query, apart = state + ((stride + OUTPUT) >> 1), word(words, w.K_HEAD)
        at = head * apart
        if rows > 4:
            scores8(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        elif rows > 2:
            scores4(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        elif rows > 1:
            scores2(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        else:
            scores1(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        for other in range(heads):
            mine = scores + other * w.HEAD_SCORES
            for number in range(min(rows, TILE)):
                low, high = word(bounds, 2 * number) - first, word(bounds, 2 * number + 1) - first
                place = state + other * each + number * stride
                factor = weigh(words, place, mine + number * w.SCORES, low, high, count)
                put(mine + w.SCORES * TILE, number, factor)
        apart = word(words, w.V_HEAD)
        o, keys, ahead, at = state + OUTPUT, keys + 8 * KEYS, ahead + 8 * KEYS, head * apart
        if rows > 4:
            outputs8(o, stride, each, scores, keys, ahead, at, apart, heads, dim, count)
            return 8
        if rows > 2:
            outputs4(o, stride, each, scores, keys, ahead, at, apart, heads, dim, count)
            return 4
        if rows > 1:
            outputs2(o, stride, each, scores, keys, ahead, at, apart, heads, dim, count)
            return 2
        outputs1(o, stride, each, scores, keys, ahead, at, apart, heads, dim, count)
        return 1

    return step


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for queries, keys, values and results of a dtype; ``paged_words`` has its words."""
    step = step_of(dtype)
    begin, finish = begin_of(dtype), finish_of(dtype)

    @jit
    def read(
        words: int,
        task: int,
        scratch: int,
        states: int,
        head: int,
        heads: int,
        rows: int,
    ) -> None:
        first, end, sequence = (
            int32(task, w.FIRST_KEY),
            int32(task, w.END_KEY),
            int32(task, w.SEQUENCE),
        )
        keys, following, bounds = scratch, scratch + 16 * KEYS, scratch + w.HEADER
        count = min(KEYS, end - first)
        list_keys(words, keys, sequence, first, count, visible(bounds, rows, first, count))
        while first < end:
            # At the end nothing is to be asked for but what has been read.
            after, left = first, count
            if first + count < end:
                after, left = first + count, min(KEYS, end - first - count)
            quarter = visible(bounds, rows, after, left)
            list_keys(words, following, sequence, after, left, quarter)
            row = 0
            while row < rows:
                row += step(
                    words,
                    scratch,
                    states,
                    row,
                    rows - row,
                    head,
                    heads,
                    keys,
                    following,
                    first,
                    count,
                )
            keys, following = following, keys
            first, count = first + count, left

    @jit
    def do(words: int, task: int, scratch: int, group: int) -> None:
        head = group * word(words, w.SPAN)
        heads = min(word(words, w.SPAN), word(words, w.KV_HEADS) - head)
        share = word(words, w.HEADS) // word(words, w.KV_HEADS)
        rows, size = int32(task, w.QUERIES) * share, state_bytes(words)
        states = scratch + w.HEADER + ((16 * word(words, w.ROWS) + 63) & -64)
        each = word(words, w.ROWS) * size
        bound(words, task, scratch, share)
        for number in range(heads):
            begin(words, task, states + number * each, head + number, rows, share)
        read(words, task, scratch, states, head, heads, rows)
        splits, slot = int32(task, w.SPLITS), int32(task, w.SLOT)
        if splits > 1:
            for number in range(heads):
                mine = slot + int32(task, w.SPLIT)
                leave(words, mine, states + number * each, head + number, rows)
            counter = word(words, w.ARRIVED) + 4 * (slot * word(words, w.HEAD_GROUPS) + group)
            if arrive(counter) < splits - 1:
                return
            set_int32(counter, 0)  # for the next time, if these words are used again
            for number in range(heads):
                merge(words, slot, splits, states + number * each, head + number, rows)
        for number in range(heads):
            finish(words, task, states + number * each, head + number, rows, share)

    def paged_attention(words: int) -> None:
        member = next_chunk(words + 8 * w.TEAM)
        scratch = word(words, w.SCRATCH) + member * word(words, w.SCRATCH_BYTES)
        groups = word(words, w.HEAD_GROUPS)
        while True:
            number = next_chunk(words)
            if number >= word(words, w.TASKS):
                return
            task = word(words, w.TASK_TABLE) + 4 * w.COLUMNS * (number // groups)
            do(words, task, scratch, number - number // groups * groups)

    return paged_attention
