"""Paged attention of bf16 by the matrix unit of the processor, for dimensions that come by 32.

Keys and values are multiplied where they lie, 16 rows of a block at a time. Of values two
dimensions stand in a word; a weight and a zero take the even one of them, a zero and a weight the
odd one. Where a value is infinite or NaN, the results of its neighbour are so as well, which is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_backend.cpu.compiled import matrix_code as matrix
from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled.matrix_rows import (
    area_of,
    begin,
    finish,
    matrix_rows,
    queries_at,
    scores_at,
    weigh_rows,
    weights_at,
)
from sagellm_backend.cpu.compiled.paged_attention import Parts, kernel_of
from sagellm_backend.cpu.compiled.paged_rows import KEYS, OUTPUT, state_bytes
from sagellm_backend.cpu.compiled.storage import set_word, word
from sagellm_backend.cpu.compiled.vectors import jit


@jit
def locate(
    words: int, keys: int, first: int, whole: int, offset: int, step: int, count: int, area: int
) -> None:
    """List where each 16 keys, or values, are.

    Copied if not in one block; and if not all are among the first ``whole``, with zeros for others.
    """
    nbytes, size = 2 * word(words, w.DIM), word(words, w.BLOCK_SIZE)
    for at in range(0, count, 16):
        place, source, apart = area + w.PLACES + at, word(keys, at) + offset, step
        if (first + at) - (first + at) // size * size + 16 > size or at + 16 > whole:
            source, apart = area + w.COPIES + at * nbytes, nbytes
            matrix.copy_rows(source, keys, at, offset, nbytes, whole)
        set_word(place, 0, source)
        set_word(place, 1, apart)
        # If this is the last of an odd number, another is taken for it that may be read.
        set_word(place, 2, source)
        set_word(place, 3, apart)


@jit
def shape(area: int, size: int) -> None:
    """Shape the matrices for so many rows, if they are not."""
    if word(area, w.SHAPED) != size:
        set_word(area, w.SHAPED, size)
        matrix.set_shapes(area + w.SHAPES, size)


@jit
def score_head(
    words: int,
    states: int,
    head: int,
    number: int,
    rows: int,
    keys: int,
    ahead: int,
    first: int,
    count: int,
) -> None:
    """Scores of all rows of a kv head."""
    area, dim, row = area_of(words, states), word(words, w.DIM), 0
    offset = (head + number) * word(words, w.K_HEAD)
    locate(words, keys, first, KEYS, offset, word(words, w.K_SLOT), count, area)
    while row < rows:
        size, at = matrix_rows(rows - row), number * word(words, w.ROWS) + row
        shape(area, size)
        queries, target = queries_at(words, area, at), scores_at(words, area, at)
        matrix.scores(queries, size, area + w.PLACES, count, dim, target, ahead, offset)
        row += size


@jit
def add_head(
    words: int,
    states: int,
    head: int,
    number: int,
    rows: int,
    values: int,
    ahead: int,
    first: int,
    count: int,
) -> None:
    """Outputs of all rows of a kv head."""
    area, dim, stride, row = area_of(words, states), word(words, w.DIM), state_bytes(words), 0
    offset = (head + number) * word(words, w.V_HEAD)
    locate(words, values, first, count, offset, word(words, w.V_SLOT), count, area)
    while row < rows:
        size, at = matrix_rows(rows - row), number * word(words, w.ROWS) + row
        shape(area, size)
        places, weights = area + w.PLACES, weights_at(words, area, at)
        output = states + at * stride + OUTPUT
        matrix.outputs(output, stride >> 1, weights, places, count, dim, ahead, offset)
        row += size


@jit
def chunk(
    words: int,
    scratch: int,
    states: int,
    head: int,
    heads: int,
    rows: int,
    keys: int,
    following: int,
    first: int,
    count: int,
) -> None:
    """Add at most KEYS keys to all rows of some kv heads."""
    # What a matrix holds can be read long after it was asked for: other heads go on meanwhile.
    for number in range(heads):
        score_head(words, states, head, number, rows, keys, following, first, count)
    area, bounds = area_of(words, states), scratch + w.HEADER
    for number in range(heads):
        row = 0
        while row < rows:
            size, at = matrix_rows(rows - row), number * word(words, w.ROWS) + row
            mine = bounds + 16 * row
            weigh_rows(words, states, mine, at, rows - row, size, first, count, area)
            row += size
    values, ahead = keys + 8 * KEYS, following + 8 * KEYS
    for number in range(heads):
        add_head(words, states, head, number, rows, values, ahead, first, count)


@jit
def enter(words: int, states: int) -> None:
    """Note the shapes that the matrices have; ours they have not."""
    area = area_of(words, states)
    set_word(area, w.SHAPED, 0)
    matrix.begin_matrices(area + w.FOUND)


@jit
def leave(words: int, states: int) -> None:
    """Give them those shapes back."""
    matrix.end_matrices(area_of(words, states) + w.FOUND)


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for bf16, which has no other dtype; ``paged_words`` has its words."""
    return kernel_of(Parts(enter, begin, chunk, state_bytes, finish, leave))
