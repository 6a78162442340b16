"""The rows of a task of paged attention: their queries, weights and results, in scratch memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled.paged_matrix import place_query, queries_at
from sagellm_backend.cpu.compiled.storage import STORAGES, int32, set_word, word
from sagellm_backend.cpu.compiled.vector_code import LANES
from sagellm_backend.cpu.compiled.vectors import (
    between,
    called,
    exp2,
    first_lane,
    highest,
    jit,
    load,
    maximum,
    minus,
    over,
    place_of,
    plus,
    splat,
    store,
    times,
    total,
)

ZERO, ONE, LIMIT = np.float32(0), np.float32(1), np.float32(126)
LOG2E = np.float32(math.log2(math.e))
LOWEST = np.float32(-3e38)
"""Lower than any score, and finite: what is hidden is -inf, and its distance from this is defined."""

SUM, OUTPUT = w.LINE, 2 * w.LINE
"""Where the sums and the outputs stand in the state of a row, behind its highest score."""

KEYS, TILE = w.KEYS, w.TILE
get, put = STORAGES["fp32"].load, STORAGES["fp32"].store


@jit
def state_bytes(words: int) -> int:
    """The state of a row: its highest score, sums, outputs, and the query in fp32."""
    return OUTPUT + 8 * ((word(words, w.DIM) + 15) & -16)


@jit
def capped(x: Any, cap: float) -> Any:
    """``cap * tanh(y)`` of ``x = 2 * log2(e) * y``, within some roundings of ``cap``."""
    # exp2 is for powers of at most 127; x comes last, as the maximum is the second where it is NaN.
    inverse = exp2(minus(splat(ZERO), maximum(splat(-LIMIT), x)))
    one = splat(ONE)
    return times(splat(cap), over(minus(one, inverse), plus(one, inverse)))


@called
def weigh(words: int, state: int, scores: int, low: int, high: int, count: int) -> Any:
    """Scores to weights by the highest so far; the factor of what was added by the one before."""
    scale, cap = splat(get(words, 2 * w.SCALE)), get(words, 2 * w.SOFTCAP)
    before = get(state, 0)
    top = splat(before)
    for first in range(0, count, LANES):
        x = times(load(scores + 4 * first), scale)
        if cap > ZERO:
            x = capped(x, cap)
        x = between(x, low - first, high - first)
        top = maximum(x, top)
        store(scores + 4 * first, x)
    now = highest(top)
    top = splat(now)
    factor = exp2(minus(splat(before), top))
    added = times(load(state + SUM), factor)
    for first in range(0, count, LANES):
        x = exp2(minus(load(scores + 4 * first), top))
        store(scores + 4 * first, x)
        added = plus(added, x)
    store(state + SUM, added)
    put(state, 0, now)
    return first_lane(factor)


@jit
def bound(words: int, task: int, scratch: int, share: int) -> None:
    """Which keys each row sees: from, and up to."""
    position, start, end = int32(task, w.POSITION), int32(task, w.FIRST_KEY), int32(task, w.END_KEY)
    window, bounds = word(words, w.WINDOW), scratch + w.HEADER
    for query in range(int32(task, w.QUERIES)):
        low, high = start, end
        if window:
            low = max(low, position + query - window + 1)
        if word(words, w.CAUSAL):
            high = min(high, position + query + 1)
        for row in range(query * share, (query + 1) * share):
            set_word(bounds, 2 * row, low)
            set_word(bounds, 2 * row + 1, high)


@jit
def row_at(words: int, task: int, head: int, row: int, share: int) -> tuple[int, int]:
    """The query token and the head of a row of a kv head."""
    query = row // share
    return int32(task, w.QUERY) + query, head * share + row - query * share


@jit
def begin_row(words: int, task: int, state: int, column: int) -> None:
    """What a row starts from: nothing, and in the first split its head's sink."""
    sinks = word(words, w.SINKS)
    if sinks and not int32(task, w.SPLIT):
        put(state, 0, max(LOWEST, get(sinks, column) * LOG2E))
        put(state + SUM, 0, ONE)
    else:
        put(state, 0, LOWEST)


def begin_of(dtype: str, matrix: bool) -> Callable[..., Any]:
    """Queries to fp32, and nothing added up; with ``matrix`` they become matrices too, in some room."""
    fetch, place = STORAGES[dtype].load, place_of(dtype)

    @called
    def begin(
        words: int, task: int, state: int, head: int, rows: int, share: int, number: int, room: int
    ) -> None:
        dim, stride = word(words, w.DIM), state_bytes(words)
        for row in range(word(words, w.ROWS)):
            for at in range(0, stride, 4 * LANES):
                store(state + at, splat(ZERO))
            put(state, 0, LOWEST)
            if row < rows:
                token, column = row_at(words, task, head, row, share)
                begin_row(words, task, state, column)
                source = token * word(words, w.Q_TOKEN) + column * word(words, w.Q_HEAD)
                for index in range(dim):
                    value = fetch(word(words, w.Q), source + index)
                    put(state + ((stride + OUTPUT) >> 1), place(index, dim), value)
                if matrix and room:
                    target = queries_at(room, dim, word(words, w.ROWS), number, row)
                    place_query(word(words, w.Q) + 2 * source, dim, target, row)
            state += stride

    return begin


def finish_of(dtype: str) -> Callable[..., Any]:
    """Outputs over their sums, rounded once."""
    keep, place = STORAGES[dtype].store, place_of(dtype)

    @called
    def finish(words: int, task: int, state: int, head: int, rows: int, share: int) -> None:
        dim = word(words, w.DIM)
        for row in range(rows):
            token, column = row_at(words, task, head, row, share)
            target = (token * word(words, w.HEADS) + column) * dim
            divisor = total(load(state + SUM))
            for number in range(dim):
                value = get(state + OUTPUT, place(number, dim))
                keep(word(words, w.OUT), target + number, value / divisor)
            state += state_bytes(words)

    return finish


@jit
def partial_at(words: int, slot: int, head: int, row: int) -> int:
    """Where a split leaves a row: outputs, their sum, and the highest score."""
    at = (head * word(words, w.ROWS) + row) * (word(words, w.DIM) + 2)
    return word(words, w.PARTIAL) + slot * word(words, w.PARTIAL_BYTES) + 4 * at


@called
def leave(words: int, slot: int, state: int, head: int, rows: int) -> None:
    """Write what a split found to its slot."""
    dim = word(words, w.DIM)
    for row in range(rows):
        place, full = partial_at(words, slot, head, row), dim & -LANES
        for number in range(0, full, LANES):
            store(place + 4 * number, load(state + OUTPUT + 4 * number))
        for number in range(full, dim):
            put(place, number, get(state + OUTPUT, number))
        put(place, dim, total(load(state + SUM)))
        put(place, dim + 1, get(state, 0))
        state += state_bytes(words)


@called
def merge(words: int, first: int, splits: int, state: int, head: int, rows: int) -> None:
    """Add the splits up, in their order, into the states."""
    dim = word(words, w.DIM)
    for row in range(rows):
        top = LOWEST
        for slot in range(first, first + splits):
            top = max(top, get(partial_at(words, slot, head, row), dim + 1))
        full, divisor = dim & -LANES, ZERO
        for number in range(0, dim, LANES):
            store(state + OUTPUT + 4 * number, splat(ZERO))
        for slot in range(first, first + splits):
            place = partial_at(words, slot, head, row)
            factor = first_lane(exp2(minus(splat(get(place, dim + 1)), splat(top))))
            divisor += factor * get(place, dim)
            for number in range(0, full, LANES):
                at = state + OUTPUT + 4 * number
                store(at, plus(load(at), times(splat(factor), load(place + 4 * number))))
            for number in range(full, dim):
                value = get(state + OUTPUT, number) + factor * get(place, number)
                put(state + OUTPUT, number, value)
        store(state + SUM, splat(ZERO))
        put(state + SUM, 0, divisor)
        state += state_bytes(words)
