"""A step of paged attention: some keys and their values, for some rows of all heads of a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled.matrix_words import MATRIX
from sagellm_backend.cpu.compiled.paged_matrix import (
    add_up,
    asked_at,
    finite,
    queries_at,
    scores_of_keys,
    sort_scores,
    split_weights,
    sums_of_values,
)
from sagellm_backend.cpu.compiled.paged_rows import KEYS, OUTPUT, TILE, get, put, state_bytes, weigh
from sagellm_backend.cpu.compiled.paged_tiles import no_tile, outputs_of, scores_of
from sagellm_backend.cpu.compiled.storage import word
from sagellm_backend.cpu.compiled.vectors import called, jit

_NEVER = 1 << 30


def step_of(dtype: str, list_keys: Callable[..., Any], matrix: bool) -> Callable[..., Any]:
    """A step over at most KEYS keys, for at most TILE rows of all heads; how many rows it was for.

    With ``matrix``, where the last argument says so, of KEYS keys by the matrix unit, for up to four.
    """
    # What the matrix unit leaves to vectors is not worth the time to compile more than two rows.
    most, eight, four, two = (2, _NEVER, _NEVER, 0) if matrix else (TILE, 4, 2, 1)
    scores1, scores2, scores4, scores8 = (
        no_tile if matrix and rows != most else scores_of(dtype, rows) for rows in (1, 2, 4, 8)
    )
    outputs1, outputs2, outputs4, outputs8 = (
        no_tile if matrix and rows != most else outputs_of(dtype, rows) for rows in (1, 2, 4, 8)
    )

    @called
    def outputs_by(
        o: int,
        stride: int,
        each: int,
        weights: int,
        values: int,
        ahead: int,
        at: int,
        apart: int,
        heads: int,
        dim: int,
        count: int,
        rows: int,
    ) -> int:
        if rows > eight:
            outputs8(o, stride, each, weights, values, ahead, at, apart, heads, dim, count)
            return 8
        if rows > four:
            outputs4(o, stride, each, weights, values, ahead, at, apart, heads, dim, count)
            return 4
        if rows > two:
            outputs2(o, stride, each, weights, values, ahead, at, apart, heads, dim, count)
            return 2
        outputs1(o, stride, each, weights, values, ahead, at, apart, heads, dim, count)
        return 1

    @called
    def outputs_of_head(
        words: int,
        mine: int,
        own: int,
        few: int,
        keys: int,
        ahead: int,
        room: int,
        other: int,
        head: int,
        heads: int,
        sequence: int,
        first: int,
    ) -> None:
        """Of KEYS keys, by the matrix unit; by vectors where that would spread what is no number."""
        dim, stride, totals = word(words, w.DIM), state_bytes(words), room + 4 * MATRIX
        apart, slot, values = word(words, w.V_HEAD), word(words, w.V_SLOT), keys + 8 * KEYS
        at, asked = (head + other) * apart, asked_at(apart, slot, dim, heads, head, other)
        factors, o = mine + w.SCORES * TILE, own + OUTPUT
        for number in range(few):
            split_weights(mine + number * w.SCORES, room + number * (MATRIX // 4))
        sums_of_values(room, values, at, slot, dim, totals, ahead, asked)
        if finite(totals, few, dim):
            for number in range(few):
                place = totals + number * (MATRIX // 4)
                add_up(o + number * stride, place, get(factors, number), dim)
            return
        zero = words & 0  # no literal, for which Numba would compile what gets it once more
        one, two, count = zero + 1, zero + 2, zero + KEYS
        list_keys(words, keys, sequence, zero, first, count, zero)
        for number in range(
            0, few, 2
        ):  # two rows at a time, by weights and factors in the first places
            for key in range(2 * KEYS):
                put(mine, key, get(mine + number * w.SCORES, key))
            put(factors, 0, get(factors, number))
            put(factors, 1, get(factors, number + 1))
            line = o + number * stride
            outputs_by(line, stride, zero, mine, values, values, at, apart, one, dim, count, two)

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
        sequence: int,
        by_matrix: bool,
    ) -> int:
        dim, stride, slot = word(words, w.DIM), state_bytes(words), word(words, w.K_SLOT)
        each, scores = word(words, w.ROWS) * stride, scratch + w.LISTS
        bounds, state = scratch + w.HEADER + 16 * row, states + row * stride
        query, apart = state + ((stride + OUTPUT) >> 1), word(words, w.K_HEAD)
        at, few, room = head * apart, min(rows, most), states + word(words, w.SPAN) * each
        if matrix and by_matrix:
            few = min(rows, 4)
            if row:
                ahead = keys  # which is there: the first rows have asked for what comes
            for other in range(heads):
                queries = queries_at(room, dim, word(words, w.ROWS), other, row)
                found = scores + other * w.HEAD_SCORES + 4 * w.SCORES
                asked = asked_at(apart, slot, dim, heads, head, other)
                scores_of_keys(queries, keys, at + other * apart, slot, dim, found, ahead, asked)
        elif rows > eight:
            scores8(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        elif rows > four:
            scores4(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        elif rows > two:
            scores2(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        else:
            scores1(query, stride, each, keys, ahead, at, apart, heads, dim, count, scores)
        ahead += 8 * KEYS
        for other in range(heads):
            mine, own = scores + other * w.HEAD_SCORES, state + other * each
            if matrix and by_matrix:
                sort_scores(mine + 4 * w.SCORES, mine)
            for number in range(few):
                low, high = word(bounds, 2 * number) - first, word(bounds, 2 * number + 1) - first
                place, line = own + number * stride, mine + number * w.SCORES
                factor = weigh(words, place, line, low, high, count)
                put(mine + w.SCORES * TILE, number, factor)
            if matrix and by_matrix:
                outputs_of_head(
                    words, mine, own, few, keys, ahead, room, other, head, heads, sequence, first
                )
        if by_matrix:
            return few
        o, values, apart = state + OUTPUT, keys + 8 * KEYS, word(words, w.V_HEAD)
        at = head * apart
        return outputs_by(
            o, stride, each, scores, values, ahead, at, apart, heads, dim, count, rows
        )

    return step
