"""Attention over a paged cache: keys and values are read once, for all queries that share them.

The online softmax of FlashAttention, over KEYS keys at a time, split over the context as in
FlashDecoding. Powers are of two, so that ``log2(e)`` is part of the scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled.matrix_code import end_matrices
from sagellm_backend.cpu.compiled.paged_matrix import POSSIBLE, begin_matrices
from sagellm_backend.cpu.compiled.paged_rows import (
    KEYS,
    begin_of,
    bound,
    finish_of,
    leave,
    merge,
    state_bytes,
)
from sagellm_backend.cpu.compiled.paged_step import step_of
from sagellm_backend.cpu.compiled.storage import (
    arrive,
    int32,
    next_chunk,
    set_int32,
    set_word,
    word,
)
from sagellm_backend.cpu.compiled.vectors import called, jit


@called
def list_keys(
    words: int, place: int, sequence: int, shift: int, first: int, count: int, quarter: int
) -> None:
    """Addresses of the rows of keys and values from ``first``, for kv head ``shift``; the last is repeated.

    With a quarter of their number, keys that are so far apart follow one another, which lie in
    several pages at once: a processor fetches ahead within each. With -1 only each sixteenth is listed.
    """
    size = word(words, w.BLOCK_SIZE)
    step = w.SIDE if quarter < 0 else 1
    table = word(words, w.BLOCKS) + 4 * sequence * word(words, w.BLOCK_ROW)
    column = first // size
    slot = first - column * size
    keys = word(words, w.K) + shift * word(words, w.K_HEAD)
    values = word(words, w.V) + shift * word(words, w.V_HEAD)
    key = value = 0
    for number in range(0, KEYS, step):
        if number < count:
            block = int32(table, column)
            key = keys + block * word(words, w.K_BLOCK) + slot * word(words, w.K_SLOT)
            value = values + block * word(words, w.V_BLOCK) + slot * word(words, w.V_SLOT)
            slot += step
            if slot == size:
                slot, column = 0, column + 1
        at = number
        if quarter > 0:
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


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for queries, keys, values and results of a dtype; ``paged_words`` has its words."""
    matrix = dtype == "bf16" and POSSIBLE
    step = step_of(dtype, list_keys, matrix)
    begin, finish = begin_of(dtype, matrix), finish_of(dtype)

    @jit
    def read(
        words: int, task: int, scratch: int, states: int, head: int, heads: int, rows: int
    ) -> int:
        """Go over the keys of a task; the number of the next one, whose first keys are asked for."""
        first, end, sequence = (
            int32(task, w.FIRST_KEY),
            int32(task, w.END_KEY),
            int32(task, w.SEQUENCE),
        )
        zero = words & 0  # of a literal Numba would compile the functions that get it once more
        keys, following, bounds = scratch, scratch + 16 * KEYS, scratch + w.HEADER
        whole = matrix and word(words, w.MATRIX) != 0 and first % w.SIDE == 0
        count = min(KEYS, end - first)
        quarter = visible(bounds, rows, first, count)
        if whole and count == KEYS:
            quarter = -1
        list_keys(words, keys, sequence, zero, first, count, quarter)
        upcoming = next_chunk(words) if first >= end else 0
        while first < end:
            after, left, other, shift = first, count, sequence, zero
            if first + count < end:
                after, left = first + count, min(KEYS, end - first - count)
                quarter = visible(bounds, rows, after, left)
                if whole and left == KEYS:
                    quarter = -1
            else:
                upcoming = next_chunk(words)
                if upcoming < word(words, w.TASKS):
                    groups = word(words, w.HEAD_GROUPS)
                    ahead = word(words, w.TASK_TABLE) + 4 * w.COLUMNS * (upcoming // groups)
                    shift = upcoming % groups * word(words, w.SPAN) - head
                    after, other = int32(ahead, w.FIRST_KEY), int32(ahead, w.SEQUENCE)
                    left = min(KEYS, int32(ahead, w.END_KEY) - after)
            list_keys(words, following, other, shift, after, left, quarter)
            row = zero
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
                    sequence,
                    whole and count == KEYS,
                )
            keys, following = following, keys
            first, count = first + count, left
        return upcoming

    @jit
    def do(words: int, task: int, scratch: int, group: int) -> int:
        """A task for a group of heads; the number of the next one."""
        head = group * word(words, w.SPAN)
        heads = min(word(words, w.SPAN), word(words, w.KV_HEADS) - head)
        share = word(words, w.HEADS) // word(words, w.KV_HEADS)
        rows, size = int32(task, w.QUERIES) * share, state_bytes(words)
        states = scratch + w.HEADER + ((16 * word(words, w.ROWS) + 63) & -64)
        each = word(words, w.ROWS) * size
        bound(words, task, scratch, share)
        room = states + word(words, w.SPAN) * each if word(words, w.MATRIX) else words & 0
        for number in range(heads):
            begin(words, task, states + number * each, head + number, rows, share, number, room)
        upcoming = read(words, task, scratch, states, head, heads, rows)
        splits, slot = int32(task, w.SPLITS), int32(task, w.SLOT)
        if splits > 1:
            for number in range(heads):
                mine = slot + int32(task, w.SPLIT)
                leave(words, mine, states + number * each, head + number, rows)
            counter = word(words, w.ARRIVED) + 4 * (slot * word(words, w.HEAD_GROUPS) + group)
            if arrive(counter) < splits - 1:
                return upcoming
            set_int32(counter, 0)  # for the next time, if these words are used again
            for number in range(heads):
                merge(words, slot, splits, states + number * each, head + number, rows)
        for number in range(heads):
            finish(words, task, states + number * each, head + number, rows, share)
        return upcoming

    def paged_attention(words: int) -> None:
        number = next_chunk(words)
        if number >= word(words, w.TASKS):
            return
        member, groups = next_chunk(words + 8 * w.TEAM), word(words, w.HEAD_GROUPS)
        scratch = word(words, w.SCRATCH) + member * word(words, w.SCRATCH_BYTES)
        kept = scratch + word(words, w.SCRATCH_BYTES) - 2 * w.LINE
        if matrix and word(words, w.MATRIX):
            begin_matrices(kept, word(words, w.ROWS))
        while number < word(words, w.TASKS):
            task = word(words, w.TASK_TABLE) + 4 * w.COLUMNS * (number // groups)
            number = do(words, task, scratch, number % groups)
        if matrix and word(words, w.MATRIX):
            end_matrices(kept)

    return paged_attention
