"""A step of paged attention by the matrix unit: 64 keys of bf16 for up to four rows of queries.

Sixteen keys are a matrix as they lie in a block, and so are their values: of each pair of neighbouring
numbers one is multiplied by a weight and the other by nothing, so that a row of weights gives the
even columns, and another the odd ones. A weight is the sum of two numbers of bf16, which is exact to
2**-17. What is not finite would spread to a neighbour by this: the step says so, and leaves the
outputs as they were.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils

from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled.matrix_code import (
    begin_with,
    clear,
    multiply_bf16,
    read_matrix,
    write_matrix,
)
from sagellm_backend.cpu.compiled.matrix_words import LINE, MATRIX, SIDE
from sagellm_backend.cpu.compiled.vector_code import (
    FLOATS,
    INTS,
    LANES,
    address_of,
    constant,
    multiply_add,
    prefetch_line,
    read,
    spread,
    whole,
)
from sagellm_backend.cpu.compiled.vector_code import write as put
from sagellm_backend.cpu.compiled.vectors import operation

cgutils: Any = _cgutils  # which says nothing of its types

POSSIBLE = LANES == 16 and bool(llvm.get_host_cpu_features().get("amx-bf16"))
"""Whether code for the unit can be made here."""

ROWS = 4
"""The most rows of a step."""

_NARROW, _GROUPS = 4 * ROWS, w.KEYS // SIDE
_ASKED = 256  # bytes of each of four blocks, for each matrix of keys or values that is read
_SCORES, _QUERIES, _KEYS, _WEIGHTS, _SUMS = (0, 1), 2, (3, 4), 5, (6, 7)
_I32, _I64 = ir.IntType(32), ir.IntType(64)

_begin = begin_with([*[_NARROW] * 3, *[LINE] * 5])


@operation(types.void, types.int64, types.int64)
def begin_matrices(builder: Any, place: Any, rows: Any) -> None:
    """Keep the shapes of the matrices at a place, and give them those for tasks of up to so many rows.

    Matrices of scores and of queries have a column for each row of queries, those of weights and of sums
    four rows: the fewer they have, the faster they are multiplied.
    """
    whole = int.from_bytes([SIDE] * 5 + [0] * 3, "little")
    last = int.from_bytes([0] * 5 + [4] * 3, "little")
    few = builder.select(builder.icmp_signed("<", rows, _I64(ROWS)), rows, _I64(ROWS))
    _begin(builder, place, builder.add(_I64(whole), builder.mul(few, _I64(last))))


@operation(types.int64, *[types.int64] * 5)
def queries_at(builder: Any, room: Any, dim: Any, rows: Any, head: Any, row: Any) -> Any:
    """Where the queries of a head of a task are, from a fourth row on, in the room of a task.

    Before them are four matrices of weights, and one of sums for every 32 columns.
    """
    fours = builder.lshr(builder.add(rows, _I64(ROWS - 1)), _I64(2))
    passed = builder.add(builder.mul(fours, head), builder.lshr(row, _I64(2)))
    columns = builder.mul(dim, builder.add(builder.mul(passed, _I64(2 * ROWS)), _I64(32)))
    return builder.add(builder.add(room, _I64(_GROUPS * MATRIX)), columns)


@operation(types.void, *[types.int64] * 4)
def place_query(builder: Any, source: Any, dim: Any, target: Any, row: Any) -> None:
    """A row's query as a column of matrices, 32 numbers of it after the other."""
    column = builder.shl(builder.and_(row, _I64(ROWS - 1)), _I64(2))
    place = builder.add(target, column)
    with cgutils.for_range_slice(builder, _I64(0), dim, _I64(2)) as (at, _):
        pair = address_of(builder, builder.add(source, builder.shl(at, _I64(1))), _I32)
        found = builder.load(pair, align=2)
        into = builder.add(place, builder.mul(at, _I64(_NARROW // 2)))
        builder.store(found, address_of(builder, into, _I32), align=4)


@operation(types.int64, *[types.int64] * 6)
def asked_at(
    builder: Any, apart: Any, step: Any, dim: Any, heads: Any, head: Any, number: Any
) -> Any:
    """Behind the rows of a list, where 16 rows begin that a head asks for.

    All heads of a task together ask for all rows, where heads or tokens lie one behind the other.
    """
    nbytes = builder.mul(dim, _I64(2))
    near = builder.and_(
        builder.icmp_signed("==", apart, nbytes),
        builder.icmp_signed("==", step, builder.mul(heads, nbytes)),
    )
    offset = builder.mul(head, apart)
    part = builder.select(near, builder.mul(nbytes, _I64(SIDE)), apart)
    return builder.add(offset, builder.mul(part, number))


class _Blocks:
    """Four blocks of 16 rows of keys or values: what is read of them, and what is asked for."""

    def __init__(self, builder: Any, rows: Any, offset: Any, ahead: Any, asked: Any) -> None:
        self.builder = builder
        self.rows = [builder.add(place, offset) for place in self._listed(rows)]
        self.ahead = [builder.add(place, asked) for place in self._listed(ahead)]

    def _listed(self, addresses: Any) -> list[Any]:
        builder, found = self.builder, []
        for group in range(_GROUPS):
            entry = builder.add(addresses, _I64(8 * SIDE * group))
            found.append(builder.load(address_of(builder, entry, _I64), align=8))
        return found

    def read(self, matrix: int, group: int, at: Any, apart: Any) -> None:
        """Columns from ``at`` on of the rows of a block."""
        place = self.builder.add(self.rows[group], self.builder.mul(at, _I64(2)))
        read_matrix(self.builder, matrix, place, apart)

    def ask(self, at: Any, number: int) -> None:
        """Ask for a part of all blocks, line by line in turn: of 64 rows of 32 columns the one so numbered.

        A processor fetches ahead within each page that is read, and so within several at once.
        """
        builder = self.builder
        shift = builder.mul(at, _I64(_GROUPS * _ASKED // (LINE // 2)))
        for line in range(0, _ASKED, LINE):
            for place in self.ahead:
                start = builder.add(builder.add(place, shift), _I64(_ASKED * number + line))
                prefetch_line(builder, start)


@operation(types.void, *[types.int64] * 8)
def scores_of_keys(
    builder: Any,
    queries: Any,
    keys: Any,
    offset: Any,
    apart: Any,
    dim: Any,
    scores: Any,
    ahead: Any,
    asked: Any,
) -> None:
    """The scores of 64 keys for all rows: a line for each four keys, which is not yet as it is wanted.

    ``keys`` lists their addresses, of which each sixteenth counts: ``offset`` bytes behind it 16 rows
    lie ``apart`` bytes from one another. Asks for as many rows ``asked`` bytes behind ``ahead``.
    """
    blocks = _Blocks(builder, keys, offset, ahead, asked)
    for half in range(0, _GROUPS, 2):
        for matrix in _SCORES:
            clear(builder, matrix)
        with cgutils.for_range_slice(builder, _I64(0), dim, _I64(LINE // 2)) as (at, _):
            place = builder.add(queries, builder.mul(at, _I64(_NARROW // 2)))
            read_matrix(builder, _QUERIES, place, _I64(_NARROW))
            for number, matrix in enumerate(_SCORES):
                blocks.read(_KEYS[number], half + number, at, apart)
                blocks.ask(at, half + number)
                multiply_bf16(builder, matrix, _KEYS[number], _QUERIES)
        for number, matrix in enumerate(_SCORES):
            target = builder.add(scores, _I64(_NARROW * SIDE * (half + number)))
            write_matrix(builder, matrix, target, _I64(_NARROW))


@operation(types.void, *[types.int64] * 2)
def sort_scores(builder: Any, found: Any, scores: Any) -> None:
    """Lines of the scores of four keys for each of four rows, to the lines of each row."""
    both = [lane if lane < 8 else LANES + lane - 8 for lane in range(LANES)]
    for group in range(_GROUPS):
        place = builder.add(found, _I64(_NARROW * SIDE * group))
        lines = [read(builder, builder.add(place, _I64(LINE * part))) for part in range(ROWS)]
        for row in range(ROWS):
            lanes = [row + ROWS * (number % 8) for number in range(LANES)]
            halves = [
                builder.shuffle_vector(a, b, ir.Constant(INTS, lanes))
                for a, b in (lines[:2], lines[2:])
            ]
            line = builder.shuffle_vector(*halves, ir.Constant(INTS, both))
            put(builder, builder.add(scores, _I64(row * w.SCORES + LINE * group)), line)


@operation(types.void, *[types.int64] * 2)
def split_weights(builder: Any, weights: Any, target: Any) -> None:
    """Four lines of each matrix of weights, from those of a row: for even and odd columns, of both parts."""
    high = whole(-(1 << 16))
    for group in range(_GROUPS):
        value = read(builder, builder.add(weights, _I64(LINE * group)))
        upper = builder.and_(builder.bitcast(value, INTS), high)
        rest = builder.fsub(value, builder.bitcast(upper, FLOATS))
        lower = builder.add(builder.bitcast(rest, INTS), whole(1 << 15))
        for number, part in enumerate((upper, lower)):
            line = builder.add(target, _I64(MATRIX * group + 2 * LINE * number))
            put(builder, line, builder.lshr(part, whole(16)))
            put(builder, builder.add(line, _I64(LINE)), builder.and_(part, high))


@operation(types.void, *[types.int64] * 8)
def sums_of_values(
    builder: Any,
    weights: Any,
    values: Any,
    offset: Any,
    apart: Any,
    dim: Any,
    target: Any,
    ahead: Any,
    asked: Any,
) -> None:
    """The sums of 64 values by their weights, a matrix for every 32 columns; as :func:`scores_of_keys`."""
    blocks, line, two = _Blocks(builder, values, offset, ahead, asked), _I64(LINE), _I64(LINE)

    def add(at: Any, columns: list[Any]) -> None:
        for number, _ in enumerate(columns):
            clear(builder, _SUMS[number])
        for group in range(_GROUPS):
            read_matrix(builder, _WEIGHTS, builder.add(weights, _I64(MATRIX * group)), line)
            for number, column in enumerate(columns):
                blocks.read(_KEYS[number], group, column, apart)
                blocks.ask(column, group)
                multiply_bf16(builder, _SUMS[number], _WEIGHTS, _KEYS[number])
        for number, column in enumerate(columns):
            place = builder.add(target, builder.mul(column, _I64(MATRIX // (LINE // 2))))
            write_matrix(builder, _SUMS[number], place, line)

    pairs = builder.and_(dim, _I64(-LINE))
    with cgutils.for_range_slice(builder, _I64(0), pairs, two) as (at, _):
        add(at, [at, builder.add(at, _I64(LINE // 2))])
    with cgutils.for_range_slice(builder, pairs, dim, two) as (at, _):
        add(at, [at])


@operation(types.int64, *[types.int64] * 3)
def finite(builder: Any, totals: Any, rows: Any, dim: Any) -> Any:
    """Whether all sums of some rows are numbers: 1 or 0. What is not is in the upper parts' sums."""
    nothing = cgutils.alloca_once_value(builder, constant(0.0))
    builder.store(constant(0.0), nothing)
    lines = builder.mul(rows, _I64(4 * LINE))
    with cgutils.for_range_slice(builder, _I64(0), dim, _I64(LINE // 2)) as (at, _):
        matrix = builder.add(totals, builder.mul(at, _I64(MATRIX // (LINE // 2))))
        with cgutils.for_range_slice(builder, _I64(0), lines, _I64(4 * LINE)) as (row, _):
            for odd in range(2):
                place = builder.add(builder.add(matrix, row), _I64(LINE * odd))
                value = read(builder, place)
                zero = builder.fsub(value, value, flags=("nsz",))
                builder.store(builder.fadd(builder.load(nothing), zero, flags=("nsz",)), nothing)
    wrong = builder.fcmp_unordered("uno", builder.load(nothing), builder.load(nothing))
    lanes = ir.IntType(LANES)
    return builder.zext(builder.icmp_unsigned("==", builder.bitcast(wrong, lanes), lanes(0)), _I64)


@operation(types.void, types.int64, types.int64, types.float32, types.int64)
def add_up(builder: Any, output: Any, totals: Any, factor: Any, dim: Any) -> None:
    """The outputs of a row times a factor, and its sums; even columns before odd ones."""
    scale = spread(builder, factor)
    with cgutils.for_range_slice(builder, _I64(0), dim, _I64(LINE // 2)) as (at, _):
        matrix = builder.add(totals, builder.mul(at, _I64(MATRIX // (LINE // 2))))
        for odd in range(2):
            place = builder.add(output, builder.add(builder.mul(at, _I64(4)), _I64(LINE * odd)))
            upper = read(builder, builder.add(matrix, _I64(LINE * odd)))
            lower = read(builder, builder.add(matrix, _I64(LINE * (odd + 2))))
            put(
                builder,
                place,
                multiply_add(builder, read(builder, place), scale, builder.fadd(upper, lower)),
            )
