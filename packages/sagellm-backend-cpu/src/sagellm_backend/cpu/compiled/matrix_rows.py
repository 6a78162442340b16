"""The rows of a task where matrices compute: their queries, weights and results.

Behind their states stand the queries in pairs of dimensions, for each matrix, and its scores and
weights. Outputs are of even dimensions in the first half of a state, of odd ones in the second.
"""

from __future__ import annotations

from sagellm_backend.cpu.compiled import matrix_code as matrix
from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled.paged_rows import (
    KEYS,
    ONE,
    OUTPUT,
    SUM,
    ZERO,
    begin_row,
    row_at,
    state_bytes,
    weigh_of,
)
from sagellm_backend.cpu.compiled.storage import mover, set_word, word
from sagellm_backend.cpu.compiled.vectors import jit, load, over, splat, store, times, total

ROW = 4 * KEYS
"""Bytes of the scores of a row for a chunk of keys."""

copy_pair = mover(4)
weigh = weigh_of(matrix.keep_weights)


@jit
def matrix_rows(rows: int) -> int:
    """For how many rows the matrices are shaped that take the first of so many."""
    size = 1
    while size < min(rows, w.MATRIX):
        size += size
    return size


@jit
def area_of(words: int, states: int) -> int:
    """The memory behind the rows: as ``paged_words`` says, then what the following functions find."""
    place: int = states + word(words, w.SPAN) * word(words, w.ROWS) * state_bytes(words)
    return place


@jit
def queries_at(words: int, area: int, row: int) -> int:
    """The queries in pairs of dimensions; this and the following for a row among those of all heads."""
    place: int = area + w.COPIES + 2 * word(words, w.DIM) * (KEYS + row)
    return place


@jit
def scores_at(words: int, area: int, row: int) -> int:
    """Scores by keys, and by rows."""
    rows = word(words, w.SPAN) * word(words, w.ROWS)
    place: int = queries_at(words, area, rows) + 2 * ROW * row
    return place


@jit
def weights_at(words: int, area: int, row: int) -> int:
    """Weights, twice."""
    rows = word(words, w.SPAN) * word(words, w.ROWS)
    place: int = scores_at(words, area, rows + row)
    return place


@jit
def by_rows(words: int, area: int, row: int, size: int) -> int:
    """Scores by keys to scores by rows: where they are."""
    rounds = 1
    scores: int = scores_at(words, area, row)
    other = scores + ROW * size
    while rounds < size:
        matrix.unshuffle(scores, other, ROW * size)
        scores, other = other, scores
        rounds += rounds
    return scores


@jit
def scaled(state: int, stride: int, dim: int, factor: float) -> None:
    """Multiply the outputs of a row."""
    for half in range(2):
        for at in range(OUTPUT, OUTPUT + 2 * dim, w.LINE):
            place = state + half * (stride >> 1) + at
            store(place, times(load(place), splat(factor)))


@jit
def weigh_rows(
    words: int,
    states: int,
    bounds: int,
    row: int,
    rows: int,
    size: int,
    first: int,
    count: int,
    area: int,
) -> None:
    """Scores of the rows of a matrix to weights, and outputs to what they are by the new maximum."""
    stride, weights = state_bytes(words), weights_at(words, area, row)
    scores = by_rows(words, area, row, size)
    for number in range(min(rows, size)):
        low, high = word(bounds, 2 * number) - first, word(bounds, 2 * number + 1) - first
        state = states + (row + number) * stride
        mine = weights + 2 * ROW * number
        factor = weigh(words, state, scores + ROW * number, mine, low, high, count)
        if factor != ONE:
            scaled(state, stride, word(words, w.DIM), factor)


@jit
def begin(words: int, task: int, states: int, index: int, head: int, rows: int, share: int) -> None:
    """Nothing added up, and the queries in pairs of dimensions."""
    dim, stride = word(words, w.DIM), state_bytes(words)
    area, state, row = area_of(words, states), states + index * state_bytes(words), 0
    while row < rows:
        size = matrix_rows(rows - row)
        queries = queries_at(words, area, index + row)
        for number in range(min(size, rows - row)):
            for at in range(0, stride, w.LINE):
                store(state + at, splat(ZERO))
            token, column = row_at(words, task, head, row + number, share)
            begin_row(words, task, state, column)
            source = token * word(words, w.Q_TOKEN) + column * word(words, w.Q_HEAD)
            source = word(words, w.Q) + 2 * source
            for pair in range(dim >> 1):
                copy_pair(queries + 4 * (pair * size + number), source + 4 * pair)
            state += stride
        row += size


@jit
def finish(words: int, task: int, state: int, head: int, rows: int, share: int) -> None:
    """Outputs over their sums, rounded once; and whether one is infinite or NaN."""
    dim, half, found = word(words, w.DIM), state_bytes(words) >> 1, 0
    for row in range(rows):
        token, column = row_at(words, task, head, row, share)
        target = word(words, w.OUT) + 2 * dim * (token * word(words, w.HEADS) + column)
        divisor = splat(total(load(state + SUM)))
        for at in range(0, 2 * dim, w.LINE):
            place = state + OUTPUT + at
            even, odd = over(load(place), divisor), over(load(place + half), divisor)
            found |= matrix.not_finite(even) | matrix.not_finite(odd)
            matrix.store_pairs(target + at, even, odd)
        state += state_bytes(words)
    if found:
        set_word(words, w.NOT_FINITE, 1)
