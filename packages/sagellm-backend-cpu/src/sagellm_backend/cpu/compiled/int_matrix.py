"""Rows times an int8 weight by the matrix unit, exactly: the weight is read once, at memory's speed.

Of x the unit takes digits, and makes of 16 rows of the weight the sums of a digit's products, in
int32 without loss. Sixteen such columns cost what one costs: two units of digits. They are put
together in fp64, and the result is rounded to fp32 once. Rows whose numbers are not finite, or lie
too far apart, are summed up by vectors, as are outputs that do not fill a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils

from sagellm_backend.cpu.compiled.digit_sums import collect, put_together
from sagellm_backend.cpu.compiled.digits import MANTISSA, NOT_FINITE, UNIT_BITS, digits, extent
from sagellm_backend.cpu.compiled.int_linear import tile_of
from sagellm_backend.cpu.compiled.matrix_code import (
    begin_matrices,
    clear,
    end_matrices,
    multiply_int8,
    read_matrix,
    write_matrix,
)
from sagellm_backend.cpu.compiled.matrix_words import (
    FACTORS,
    LINE,
    MATRIX,
    MOST_UNITS,
    ROW,
    SIDE,
    STATE,
)
from sagellm_backend.cpu.compiled.storage import next_chunk, set_word, word
from sagellm_backend.cpu.compiled.vectors import jit, operation

cgutils: Any = _cgutils  # which says nothing of its types

_TOTALS, _WEIGHTS, _DIGITS = (0, 1, 2, 3), (4, 5), (6, 7)
_I64 = ir.IntType(64)


def _product(blocks: int, pairs: int) -> Any:
    """``product(weight, step, digits, size, totals)``: blocks of outputs by pairs of units.

    Of a block the rows are ``step`` bytes apart, and blocks begin with neighbouring rows. Totals
    are for each pair the matrices of two blocks.
    """

    @operation(types.void, *[types.int64] * 6)
    def product(
        builder: Any, weight: Any, inputs: Any, step: Any, digits: Any, size: Any, totals: Any
    ) -> None:
        line = _I64(LINE)
        cells = [(pair, block) for pair in range(pairs) for block in range(blocks)]
        for pair, block in cells:
            clear(builder, _TOTALS[2 * pair + block])
        with cgutils.for_range_slice(builder, _I64(0), size, _I64(MATRIX)) as (at, _):
            place = builder.add(weight, builder.lshr(at, _I64(4)))
            for block in range(blocks):
                row = builder.add(place, builder.mul(inputs, _I64(block)))
                read_matrix(builder, _WEIGHTS[block], row, step)
            for pair in range(pairs):
                column = builder.add(digits, builder.mul(size, _I64(pair)))
                read_matrix(builder, _DIGITS[pair], builder.add(column, at), line)
                for block in range(blocks):
                    total = _TOTALS[2 * pair + block]
                    multiply_int8(builder, total, _WEIGHTS[block], _DIGITS[pair])
        for pair, block in cells:
            number = 2 * pair + block
            place = builder.add(totals, _I64(MATRIX * number))
            write_matrix(builder, _TOTALS[number], place, line)

    return product


@jit
def make_digits(x: int, inputs: int, rows: int, kept: int, target: int) -> int:
    """The digits of rows, and what is kept of each; how many pairs of units there are."""
    count, size = 0, (inputs + LINE - 1 & -LINE) * SIDE
    for row in range(rows):
        start = x + 4 * row * inputs
        found = extent(start, inputs)
        low, high = found & 255, found >> 8
        units = 0
        if high < NOT_FINITE:
            low = min(low, high)
            units = (high - low + MANTISSA + UNIT_BITS - 1) // UNIT_BITS
        if units > MOST_UNITS:
            units = 0
        set_word(kept + ROW * row, 0, units)
        set_word(kept + ROW * row, 1, count)
        set_word(kept + ROW * row, 2, low)
        for unit in range(units):
            place = target + (count >> 1) * size + (count & 1) * (LINE // 2)
            digits(start, inputs, size // SIDE, low + unit * UNIT_BITS, place)
            count += 1
    return count + 1 >> 1


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for weights of int8.

    Words: counter, counter of threads, x (rows, inputs), weight (outputs, inputs), scale (outputs),
    bias or 0, y (rows, outputs), inputs, outputs, rows, outputs in a chunk, rows in a block, scratch
    memory, bytes of it for a thread. All is contiguous and fp32 but the weight.
    """
    by_four, by_one = tile_of(1, 4, dtype), tile_of(1, 1, dtype)
    two_by_two, two_by_one = _product(2, 2), _product(2, 1)
    one_by_two, one_by_one = _product(1, 2), _product(1, 1)

    @jit
    def multiply(
        weight: int, inputs: int, step: int, planes: int, totals: int, pairs: int, blocks: int
    ) -> None:
        """One or two blocks of outputs by all pairs of units."""
        size = (inputs + LINE - 1 & -LINE) * SIDE
        for pair in range(0, pairs, 2):
            p, t = planes + pair * size, totals + 2 * MATRIX * pair
            if pair + 1 < pairs:
                if blocks == 2:
                    two_by_two(weight, inputs, step, p, size, t)
                else:
                    one_by_two(weight, inputs, step, p, size, t)
            elif blocks == 2:
                two_by_one(weight, inputs, step, p, size, t)
            else:
                one_by_one(weight, inputs, step, p, size, t)

    @jit
    def finish(words: int, state: int, first: int, output: int, apart: int, blocks: int) -> None:
        """One or two blocks of outputs, so many ``apart``, of the rows of a block from ``first`` on."""
        outputs, scale, bias = word(words, 8), word(words, 4), word(words, 5)
        factors = state + STATE
        for number in range(blocks):
            s, b = scale + 4 * (output + number), bias + 4 * (output + number) if bias else 0
            collect(s, b, apart, factors + number * FACTORS)
        kept = factors + 2 * FACTORS
        totals = kept + (ROW * word(words, 11) + LINE - 1 & -LINE)
        for row in range(min(word(words, 11), word(words, 9) - first)):
            k, y = kept + ROW * row, word(words, 6) + 4 * ((first + row) * outputs + output)
            if word(k, 0):
                for number in range(blocks):
                    t, f = totals + number * MATRIX, factors + number * FACTORS
                    put_together(t, word(k, 1), word(k, 0), word(k, 2), f, y + 4 * number, apart)

    @jit
    def by_vectors(words: int, row: int, output: int, last: int) -> None:
        """Outputs of a row that matrices are not for."""
        inputs, outputs = word(words, 7), word(words, 8)
        x, y = word(words, 2) + 4 * row * inputs, word(words, 6) + 4 * row * outputs
        while output < last:
            w, s = word(words, 3) + output * inputs, word(words, 4) + 4 * output
            b = word(words, 5) + 4 * output if word(words, 5) else 0
            if output + 4 <= last:
                by_four(x, w, s, 0, 0, b, y + 4 * output, inputs, outputs, 1)
                output += 4
            else:
                by_one(x, w, s, 0, 0, b, y + 4 * output, inputs, outputs, 1)
                output += 1

    def int_matrix(words: int) -> None:
        x, weight, inputs = word(words, 2), word(words, 3), word(words, 7)
        outputs, rows = word(words, 8), word(words, 9)
        chunk, block = word(words, 10), word(words, 11)
        chunks = (outputs + chunk - 1) // chunk
        tasks = chunks * ((rows + block - 1) // block)
        task = next_chunk(words)
        if task >= tasks:
            return
        state = word(words, 12) + next_chunk(words + 8) * word(words, 13)
        kept = state + STATE + 2 * FACTORS
        totals = kept + (ROW * block + LINE - 1 & -LINE)
        planes = totals + 2 * block * MATRIX
        # Of the last rows of a weight matrices would read beyond its end.
        most = (outputs * inputs - (inputs + LINE - 1 & -LINE)) // inputs + 1
        made, pairs = -1, 0
        begin_matrices(state)
        while task < tasks:
            row, first = task // chunks * block, task % chunks * chunk
            count, last = min(block, rows - row), min(first + chunk, outputs)
            if row != made:
                made, pairs = row, make_digits(x + 4 * row * inputs, inputs, count, kept, planes)
            apart = max(0, min(last, most) - first) // SIDE
            for at in range(0, apart, 2):
                w, blocks = weight + (first + at) * inputs, min(2, apart - at)
                multiply(w, inputs, apart * inputs, planes, totals, pairs, blocks)
                finish(words, state, row, first + at, apart, blocks)
            for number in range(count):
                done = SIDE * apart if word(kept + ROW * number, 0) else 0
                by_vectors(words, row + number, first + done, last)
            task = next_chunk(words)
        end_matrices(state)

    return int_matrix
