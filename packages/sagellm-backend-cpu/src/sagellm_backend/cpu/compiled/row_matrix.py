"""Rows times a weight of bf16 by the matrix unit: the weight is read once for every 64 rows.

Sixteen rows of the weight are a matrix as they lie; those of x become one by pairs of numbers, which
every thread makes for itself. The products of bf16 are added up in fp32, two at a time. As in
``row_linear`` the outputs of a matrix lie far apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils

from sagellm_backend.cpu.compiled.matrix_code import (
    begin_matrices,
    clear,
    end_matrices,
    multiply_bf16,
    read_matrix,
    write_matrix,
)
from sagellm_backend.cpu.compiled.matrix_words import LINE, MOST_AT_ONCE, SIDE, STATE
from sagellm_backend.cpu.compiled.row_linear import BFloat
from sagellm_backend.cpu.compiled.storage import next_chunk, word
from sagellm_backend.cpu.compiled.vector_code import (
    FLOATS,
    INTS,
    LANES,
    address_of,
    read,
    read_parts,
    transposed,
)
from sagellm_backend.cpu.compiled.vector_code import (
    write as put,
)
from sagellm_backend.cpu.compiled.vectors import jit, operation

cgutils: Any = _cgutils  # which says nothing of its types

_I64 = ir.IntType(64)
_WEIGHT, _ROWS = 7, 6  # matrices; those from 0 on are sums


def _product(groups: int) -> Any:
    """``product(weight, step, x, size, target, apart)``: 16 outputs of so many groups of 16 rows.

    A row of the weight has ``size`` bytes, and that of the next output begins ``step`` bytes behind.
    The sums of an output go to a line of ``target`` for each group, and those of the next ``apart``
    bytes behind.
    """

    @operation(types.void, *[types.int64] * 6)
    def product(
        builder: Any, weight: Any, step: Any, x: Any, size: Any, target: Any, apart: Any
    ) -> None:
        line = _I64(LINE)
        for group in range(groups):
            clear(builder, group)
        with cgutils.for_range_slice(builder, _I64(0), size, line) as (at, _):
            read_matrix(builder, _WEIGHT, builder.add(weight, at), step)
            place = builder.add(x, builder.mul(at, _I64(SIDE)))
            for group in range(groups):
                read_matrix(builder, _ROWS, place, line)
                multiply_bf16(builder, group, _WEIGHT, _ROWS)
                place = builder.add(place, builder.mul(size, _I64(SIDE)))
        for group in range(groups):
            write_matrix(builder, group, builder.add(target, _I64(LINE * group)), apart)

    return product


@operation(types.void, *[types.int64] * 4)
def turn(builder: Any, x: Any, rows: Any, size: Any, target: Any) -> None:
    """The matrices of x, whose rows have ``size`` bytes: of 16 rows, those beyond ``rows`` zeros."""
    zero = ir.Constant(INTS, None)
    with cgutils.for_range_slice(builder, _I64(0), size, _I64(LINE)) as (at, _):
        vectors = []
        for row in range(SIDE):
            place = builder.add(builder.add(x, at), builder.mul(size, _I64(row)))
            given = builder.icmp_signed("<", _I64(row), rows)
            found = builder.load(
                address_of(builder, builder.select(given, place, x), INTS), align=2
            )
            vectors.append(builder.select(given, found, zero))
        start = builder.add(target, builder.mul(at, _I64(SIDE)))
        for number, vector in enumerate(transposed(builder, vectors)):
            put(builder, builder.add(start, _I64(LINE * number)), vector)


@operation(types.void, *[types.int64] * 6)
def finish(builder: Any, totals: Any, apart: Any, bias: Any, y: Any, rows: Any, step: Any) -> None:
    """Sixteen outputs, whose sums are lines ``apart`` bytes apart, of up to 16 rows, which are ``step``
    bytes apart in y.
    """
    halves = ir.VectorType(ir.IntType(16), LANES)
    lines = [
        read(builder, builder.add(totals, builder.mul(apart, _I64(line)))) for line in range(SIDE)
    ]
    added = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None))
    with builder.if_then(builder.icmp_signed("!=", bias, _I64(0))):
        builder.store(read_parts(builder, "bf16", bias, 1)[0], added)
    for row, vector in enumerate(transposed(builder, lines)):
        with builder.if_then(builder.icmp_signed("<", _I64(row), rows)):
            total = builder.fadd(vector, builder.load(added))
            rounded = builder.bitcast(_narrow(builder, total), halves)
            place = builder.add(y, builder.mul(step, _I64(row)))
            builder.store(rounded, address_of(builder, place, halves), align=2)


def _narrow(builder: Any, vector: Any) -> Any:
    """The nearest bf16."""
    kind = ir.VectorType(BFloat(), LANES)
    signature = ir.FunctionType(kind, [FLOATS])
    name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [vector])


def build(dtype: str) -> Callable[..., Any]:
    """The kernel.

    Words: counter, counter of threads, x (rows, inputs), weight (outputs, inputs), bias or 0,
    y (rows, outputs), rows, inputs, outputs, outputs in a chunk, scratch memory, bytes of it for a
    thread. All is contiguous and bf16; there are 16 outputs or more, inputs are a multiple of 32 and
    outputs in a chunk one of 16. What is left of outputs goes with the last chunk.
    """
    del dtype
    one, two, four = _product(1), _product(2), _product(4)

    @jit
    def tile(
        w: int, step: int, planes: int, size: int, totals: int, apart: int, groups: int
    ) -> None:
        if groups == 1:
            one(w, step, planes, size, totals, apart)
        elif groups == 2:
            two(w, step, planes, size, totals, apart)
        else:
            four(w, step, planes, size, totals, apart)

    @jit
    def multiply(w: int, size: int, count: int, planes: int, totals: int, groups: int) -> None:
        """The sums of ``count`` outputs."""
        apart, line = count // SIDE, LINE * groups
        for number in range(apart):
            place, target = w + number * size, totals + number * line
            tile(place, apart * size, planes, size, target, apart * line, groups)
        if count > SIDE * apart:
            at = count - SIDE  # some of them are computed again, to the same bits
            tile(w + at * size, size, planes, size, totals + at * line, line, groups)

    @jit
    def write(words: int, totals: int, from_row: int, first: int, count: int, groups: int) -> None:
        """Write the outputs of a chunk, of rows from one on."""
        bias, rows, step = word(words, 4), word(words, 6), 2 * word(words, 8)
        for number in range(0, count, SIDE):
            at = min(number, count - SIDE)
            y, b = word(words, 5) + 2 * (first + at), bias + 2 * (first + at) if bias else 0
            for group in range(groups):
                row, place = from_row + SIDE * group, totals + LINE * (at * groups + group)
                finish(place, LINE * groups, b, y + row * step, rows - row, step)

    @jit
    def turn_all(words: int, first: int, rows: int, planes: int, groups: int) -> None:
        size = 2 * word(words, 7)
        for group in range(groups):
            row = SIDE * group
            # A group without rows becomes zeros, and may not look behind the last row for them.
            x = word(words, 2) + (first + min(row, rows - 1)) * size
            turn(x, rows - row, size, planes + row * size)

    def row_matrix(words: int) -> None:
        rows, outputs, size = word(words, 6), word(words, 8), 2 * word(words, 7)
        chunk, full = word(words, 9), outputs & -SIDE
        first = next_chunk(words) * chunk
        if first >= full:
            return
        state = word(words, 10) + next_chunk(words + 8) * word(words, 11)
        planes, made = state + STATE, -1
        begin_matrices(state)
        while first < full:
            count = chunk if first + chunk < full else outputs - first
            for row in range(0, rows, MOST_AT_ONCE):
                left = rows - row
                groups = 1 if left <= SIDE else 2 if left <= 2 * SIDE else 4
                if row != made:
                    made = row
                    turn_all(words, row, left, planes, groups)
                totals = planes + SIDE * size * groups
                multiply(word(words, 3) + first * size, size, count, planes, totals, groups)
                write(words, totals, row, first, count, groups)
            first = next_chunk(words) * chunk
        end_matrices(state)

    return row_matrix
