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

from sagellm_backend.cpu.compiled.digits import (
    BITS,
    LOWEST,
    MANTISSA,
    NOT_FINITE,
    PLACES,
    UNIT_BITS,
    digits,
    extent,
)
from sagellm_backend.cpu.compiled.int_linear import tile_of
from sagellm_backend.cpu.compiled.matrix_code import (
    begin_matrices,
    clear,
    end_matrices,
    multiply_int8,
    read_matrix,
    write_matrix,
)
from sagellm_backend.cpu.compiled.matrix_words import LINE, MATRIX, MOST_UNITS, ROW, SIDE, STATE
from sagellm_backend.cpu.compiled.storage import next_chunk, set_word, word
from sagellm_backend.cpu.compiled.vector_code import address_of
from sagellm_backend.cpu.compiled.vectors import jit, operation

cgutils: Any = _cgutils  # which says nothing of its types

_TOTALS, _WEIGHTS, _DIGITS = (0, 1, 2, 3), (4, 5), (6, 7)
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_DOUBLES, _EIGHT = ir.VectorType(_DOUBLE, PLACES), ir.VectorType(_FLOAT, PLACES)
_LONGS = ir.VectorType(_I64, PLACES)
_ALL = ir.Constant(ir.VectorType(ir.IntType(1), PLACES), [1] * PLACES)
_FUSED = ("contract",)  # a flag of its own keeps Numba from letting LLVM reorder an instruction


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


@operation(types.void, *[types.int64] * 8)
def put_together(
    builder: Any,
    totals: Any,
    first: Any,
    units: Any,
    low: Any,
    scale: Any,
    bias: Any,
    y: Any,
    apart: Any,
) -> None:
    """Sixteen outputs of a row, so many ``apart``, of the sums of its digits in units from ``first`` on."""
    powers = ir.Constant(_DOUBLES, [2.0 ** (BITS * place) for place in range(PLACES)])
    last = builder.add(first, units)
    for half in range(SIDE // PLACES):
        result, shift = (cgutils.alloca_once(builder, _DOUBLES) for _ in range(2))
        builder.store(ir.Constant(_DOUBLES, None), result)
        builder.store(ir.Constant(_DOUBLES, None), shift)
        with cgutils.for_range_slice(builder, first, last, _I64(1)) as (unit, _):
            column = builder.add(totals, column_of(builder, unit, _I64(2 * MATRIX)))
            sums = []
            for output in range(PLACES):
                place = builder.add(column, _I64(LINE * (PLACES * half + output)))
                kind = ir.VectorType(_I32, PLACES)
                found = builder.load(address_of(builder, place, kind), align=32)
                sums.append(builder.fmul(builder.sitofp(found, _DOUBLES), powers, _FUSED))
            more = builder.mul(builder.sub(unit, first), _I64(UNIT_BITS))
            size = _power(builder, builder.add(low, more))
            added = builder.fmul(_across(builder, sums), size, _FUSED)
            builder.store(builder.fadd(builder.load(result), added, _FUSED), result)
        numbers = ir.Constant(_LONGS, list(range(PLACES * half, PLACES * half + PLACES)))
        places = builder.mul(_spread(builder, apart), numbers)
        factor = _gathered(builder, scale, places)
        total = builder.fmul(builder.load(result), factor, _FUSED)
        with builder.if_then(builder.icmp_signed("!=", bias, _I64(0))):
            builder.store(_gathered(builder, bias, places), shift)
        total = builder.fadd(total, builder.load(shift), _FUSED)
        _scatter(builder, builder.fptrunc(total, _EIGHT), y, places)


def column_of(builder: Any, unit: Any, pair: Any) -> Any:
    """Where a unit begins, of which two lie side by side in a ``pair`` of so many bytes."""
    left = builder.mul(builder.lshr(unit, _I64(1)), pair)
    return builder.add(left, builder.mul(builder.and_(unit, _I64(1)), _I64(LINE // 2)))


def _power(builder: Any, exponent: Any) -> Any:
    """Two to a power less LOWEST, in all lanes."""
    bits = builder.shl(builder.add(exponent, _I64(1023 - LOWEST)), _I64(52))
    return builder.bitcast(_spread(builder, bits), _DOUBLES)


def _spread(builder: Any, value: Any) -> Any:
    """An integer in all lanes."""
    one = builder.insert_element(ir.Constant(_LONGS, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, PLACES), None))


def _pointers(builder: Any, address: Any, places: Any) -> Any:
    """Where the numbers at these places of an array of fp32 are."""
    offsets = builder.shl(places, ir.Constant(_LONGS, [2] * PLACES))
    addresses = builder.add(_spread(builder, address), offsets)
    return builder.inttoptr(addresses, ir.VectorType(_FLOAT.as_pointer(), PLACES))


def _gathered(builder: Any, address: Any, places: Any) -> Any:
    """Eight fp32 of an array, as fp64."""
    pointers = _pointers(builder, address, places)
    arguments = [pointers, _I32(4), _ALL, ir.Constant(_EIGHT, None)]
    kind = ir.FunctionType(_EIGHT, [each.type for each in arguments])
    name = "llvm.masked.gather.v8f32.v8p0"
    gather = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.fpext(builder.call(gather, arguments), _DOUBLES)


def _scatter(builder: Any, value: Any, address: Any, places: Any) -> None:
    """Eight fp32 to an array."""
    arguments = [value, _pointers(builder, address, places), _I32(4), _ALL]
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
    name = "llvm.masked.scatter.v8f32.v8p0"
    scatter = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(scatter, arguments)


def _across(builder: Any, vectors: list[Any]) -> Any:
    """The vector whose lane ``i`` is the sum of the lanes of ``vectors[i]``."""
    vectors = [vectors[number] for number in (0, 4, 2, 6, 1, 5, 3, 7)]
    span = PLACES // 2
    while span:
        kept = [lane if not lane & span else lane + PLACES for lane in range(PLACES)]
        moved = [lane + span if not lane & span else lane - span + PLACES for lane in range(PLACES)]
        kind = ir.VectorType(_I32, PLACES)
        vectors = [
            builder.fadd(
                *(
                    builder.shuffle_vector(a, b, ir.Constant(kind, lanes))
                    for lanes in (kept, moved)
                ),
                _FUSED,
            )
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        span //= 2
    return vectors[0]


@jit
def make_digits(x: int, inputs: int, size: int, rows: int, kept: int, target: int) -> int:
    """The digits of all rows, and what is kept of each; how many units there are."""
    count = 0
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
    return count


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for weights of int8.

    Words: counter, counter of threads, x (rows, inputs), weight (outputs, inputs), scale (outputs),
    bias or 0, y (rows, outputs), inputs, outputs, rows, outputs in a chunk, scratch memory, bytes of
    it for a thread. All is contiguous and fp32 but the weight.
    """
    by_four, by_one = tile_of(1, 4, dtype), tile_of(1, 1, dtype)
    both, one_pair = _product(2, 2), _product(2, 1)
    one_block, one = _product(1, 2), _product(1, 1)

    @jit
    def products(
        weight: int, inputs: int, step: int, planes: int, size: int, totals: int, pairs: int
    ) -> None:
        """Two blocks by all pairs."""
        for pair in range(0, pairs - 1, 2):
            p, t = planes + pair * size, totals + 2 * MATRIX * pair
            both(weight, inputs, step, p, size, t)
        if pairs & 1:
            p, t = planes + (pairs - 1) * size, totals + 2 * MATRIX * (pairs - 1)
            one_pair(weight, inputs, step, p, size, t)

    @jit
    def last_products(
        weight: int, inputs: int, step: int, planes: int, size: int, totals: int, pairs: int
    ) -> None:
        """One block by all pairs."""
        for pair in range(0, pairs - 1, 2):
            p, t = planes + pair * size, totals + 2 * MATRIX * pair
            one_block(weight, inputs, step, p, size, t)
        if pairs & 1:
            p, t = planes + (pairs - 1) * size, totals + 2 * MATRIX * (pairs - 1)
            one(weight, inputs, step, p, size, t)

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
        x, weight, scale = word(words, 2), word(words, 3), word(words, 4)
        bias, y, inputs = word(words, 5), word(words, 6), word(words, 7)
        outputs, rows, chunk = word(words, 8), word(words, 9), word(words, 10)
        first = next_chunk(words) * chunk
        if first >= outputs:
            return
        state = word(words, 11) + next_chunk(words + 8) * word(words, 12)
        kept = state + STATE
        totals = kept + (ROW * rows + LINE - 1 & -LINE)
        planes = totals + 2 * rows * MATRIX
        size = (inputs + LINE - 1 & -LINE) * SIDE
        pairs = make_digits(x, inputs, size, rows, kept, planes) + 1 >> 1
        # Of the last rows of a weight matrices would read beyond its end.
        most = (outputs * inputs - (size >> 4)) // inputs + 1
        begin_matrices(state)
        while first < outputs:
            last = min(first + chunk, outputs)
            apart = max(0, min(last, most) - first) // SIDE
            block = 0
            while block < apart:
                w = weight + (first + block) * inputs
                count = min(2, apart - block)
                if count == 2:
                    products(w, inputs, apart * inputs, planes, size, totals, pairs)
                else:
                    last_products(w, inputs, apart * inputs, planes, size, totals, pairs)
                for row in range(rows):
                    k = kept + ROW * row
                    units = word(k, 0)
                    if units:
                        for number in range(count):
                            output = first + block + number
                            t, b = totals + MATRIX * number, bias + 4 * output if bias else 0
                            s, q = scale + 4 * output, y + 4 * (row * outputs + output)
                            put_together(t, word(k, 1), units, word(k, 2), s, b, q, apart)
                block += count
            for row in range(rows):
                done = SIDE * apart if word(kept + ROW * row, 0) else 0
                by_vectors(words, row, first + done, last)
            first = next_chunk(words) * chunk
        end_matrices(state)

    return int_matrix
