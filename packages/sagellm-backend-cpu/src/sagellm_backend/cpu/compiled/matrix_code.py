"""The matrix unit of the processor (AMX) for compiled code: eight matrices of rows of 64 bytes.

A thread that computes with them calls :func:`begin_matrices` first and :func:`end_matrices` last,
which leaves the unit as it was found: other libraries of the process use it too. Importing this
imports Numba. Addresses are int64 and are not checked.
(Intel Architecture Instruction Set Extensions Programming Reference, chapter 3.)
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from sagellm_backend.cpu.compiled.paged_words import KEYS, LINE
from sagellm_backend.cpu.compiled.storage import set_word
from sagellm_backend.cpu.compiled.vector_code import (
    FLOATS,
    INTS,
    address_of,
    constant,
    prefetch_line,
    read,
    whole,
    write,
)
from sagellm_backend.cpu.compiled.vectors import VECTOR, jit, operation, steps

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_ADDRESS = types.int64

SCORES, QUERIES, ROWS, OUTPUTS, WEIGHTS = 0, 2, 3, 5, 7
"""The matrices. Of 16 keys by rows: two of scores; of queries, 16 pairs of dimensions by rows. Two of
16 keys, or values, by 32 dimensions. Of twice the rows: two of 16 outputs; of the weights of 16 keys."""


def _call(builder: Any, name: str, *arguments: Any) -> None:
    full, kind = (
        f"llvm.x86.{name}",
        ir.FunctionType(ir.VoidType(), [each.type for each in arguments]),
    )
    function = builder.module.globals.get(full) or ir.Function(builder.module, kind, full)
    builder.call(function, arguments)


def _read(builder: Any, matrix: int, address: Any, stride: Any) -> None:
    _call(builder, "tileloadd64", _I8(matrix), address_of(builder, address, _I8), stride)


def _write(builder: Any, matrix: int, address: Any, stride: Any) -> None:
    _call(builder, "tilestored64", _I8(matrix), address_of(builder, address, _I8), stride)


def _multiply(builder: Any, total: int, a: int, b: int) -> None:
    _call(builder, "tdpbf16ps", _I8(total), _I8(a), _I8(b))


@operation(types.void, _ADDRESS)
def begin_matrices(builder: Any, place: Any) -> None:
    """Keep the shapes that the matrices have, at a place of 64 bytes."""
    _call(builder, "sttilecfg", address_of(builder, place, _I8))


@operation(types.void, _ADDRESS)
def end_matrices(builder: Any, place: Any) -> None:
    """Give the matrices the shapes that are kept there, or none if they had none."""
    _call(builder, "ldtilecfg", address_of(builder, place, _I8))


@jit
def set_shapes(place: int, rows: int) -> None:
    """Shape the matrices for so many rows of queries, up to 8, by 64 bytes of memory."""
    each = 0x0001000100010001
    for number in range(8):
        set_word(place, number, 0)
    set_word(place, 0, 1)
    set_word(place, 2, 4 * rows * (each & 0xFFFFFFFFFFFF) + (64 << 48))
    set_word(place, 3, 64 * each)
    set_word(place, 6, 0x0000001010101010 + 2 * rows * 0x0101010000000000)
    end_matrices(place)


def _ask(builder: Any, listed: Any, first: Any, offset: Any) -> None:
    """Ask for a line of 16 rows of a list."""
    for number in range(16):
        (row,) = _words(builder, listed, builder.add(first, _I64(number)))
        prefetch_line(builder, builder.add(row, offset))


def _words(builder: Any, place: Any, *numbers: Any) -> list[Any]:
    entries = [builder.add(place, builder.shl(number, _I64(3))) for number in numbers]
    return [builder.load(address_of(builder, entry, _I64), align=8) for entry in entries]


@operation(types.void, *[_ADDRESS] * 6)
def copy_rows(
    builder: Any, target: Any, listed: Any, first: Any, offset: Any, nbytes: Any, count: Any
) -> None:
    """16 rows of a list from ``first``, to all of which ``offset`` is added, and zeros from ``count`` on."""
    with steps(builder, _I64(16), 1) as row:
        number = builder.add(first, row)
        (source,) = _words(builder, listed, number)
        inside = builder.icmp_signed("<", number, count)
        place = builder.add(target, builder.mul(row, nbytes))
        with steps(builder, nbytes, LINE) as at:
            found = read(builder, builder.add(builder.add(source, offset), at))
            write(builder, builder.add(place, at), builder.select(inside, found, constant(0.0)))


@operation(types.void, *[_ADDRESS] * 8)
def scores(
    builder: Any,
    queries: Any,
    rows: Any,
    places: Any,
    count: Any,
    dim: Any,
    target: Any,
    ahead: Any,
    offset: Any,
) -> None:
    """The products of keys with the queries: for each key as many numbers as there are rows.

    ``places`` lists in pairs of words for each 16 keys where they are, and how far apart; for an
    even number of them. ``ahead`` lists rows to ask for, to which ``offset`` is added.
    """
    width = builder.shl(rows, _I64(2))
    with steps(builder, count, 32) as pair:
        for half in (0, 1):
            key = builder.add(pair, _I64(16 * half))
            keys, step = _words(builder, builder.add(places, key), _I64(0), _I64(1))
            _call(builder, "tilezero", _I8(SCORES + half))
            with steps(builder, dim, 32) as at:
                nbytes = builder.shl(at, _I64(1))
                _read(builder, QUERIES, builder.add(queries, builder.mul(nbytes, rows)), width)
                _read(builder, ROWS + half, builder.add(keys, nbytes), step)
                _multiply(builder, SCORES + half, ROWS + half, QUERIES)
                _ask(builder, ahead, key, builder.add(offset, nbytes))
            _write(builder, SCORES + half, builder.add(target, builder.mul(width, key)), width)


@operation(types.void, _ADDRESS, _ADDRESS, _ADDRESS)
def unshuffle(builder: Any, source: Any, target: Any, nbytes: Any) -> None:
    """fp32 at even places to the first half, those at odd ones to the second."""
    half = builder.lshr(nbytes, _I64(1))
    with steps(builder, half, LINE) as at:
        origin = builder.add(source, builder.shl(at, _I64(1)))
        a, b = read(builder, origin), read(builder, builder.add(origin, _I64(LINE)))
        for odd, place in ((0, target), (1, builder.add(target, half))):
            lanes = ir.Constant(INTS, list(range(odd, 32, 2)))
            write(builder, builder.add(place, at), builder.shuffle_vector(a, b, lanes))


@operation(types.void, *[_ADDRESS] * 8)
def outputs(
    builder: Any,
    o: Any,
    stride: Any,
    weights: Any,
    places: Any,
    count: Any,
    dim: Any,
    ahead: Any,
    offset: Any,
) -> None:
    """Add values by their weights to twice as many rows: of even dimensions, and of odd ones.

    The weights are as :func:`keep_weights` leaves them, so that values are read where they lie, in
    pairs of dimensions. The lists are like those of :func:`scores`.
    """

    def block(at: Any, parts: int) -> None:
        nbytes = builder.shl(at, _I64(1))
        totals = [builder.add(o, builder.add(nbytes, _I64(LINE * part))) for part in range(parts)]
        for part, place in enumerate(totals):
            _read(builder, OUTPUTS + part, place, stride)
        with steps(builder, count, 16) as key:
            values, step = _words(builder, builder.add(places, key), _I64(0), _I64(1))
            weight = builder.add(weights, builder.shl(key, _I64(2)))
            _read(builder, WEIGHTS, weight, _I64(4 * KEYS))
            for part in range(parts):
                shift = builder.add(nbytes, _I64(LINE * part))
                _read(builder, ROWS + part, builder.add(values, shift), step)
                _multiply(builder, OUTPUTS + part, WEIGHTS, ROWS + part)
                _ask(builder, ahead, key, builder.add(offset, shift))
        for part, place in enumerate(totals):
            _write(builder, OUTPUTS + part, place, stride)

    pairs = builder.and_(dim, _I64(-64))
    with steps(builder, pairs, 64) as at:
        block(at, 2)
    with steps(builder, dim, 32, pairs) as at:
        block(at, 1)


@operation(VECTOR, _ADDRESS, VECTOR)
def keep_weights(builder: Any, target: Any, value: Any) -> Any:
    """16 weights rounded to bf16: with a zero behind each, and KEYS words on with one before each."""
    # To the nearest, and up from halfway between: they are divided by the sum of what is left here.
    bits = builder.add(builder.bitcast(value, INTS), whole(0x8000))
    high = builder.and_(bits, whole(-(1 << 16)))
    write(builder, target, builder.lshr(bits, whole(16)))
    write(builder, builder.add(target, _I64(4 * KEYS)), high)
    return builder.bitcast(high, FLOATS)


@operation(types.void, _ADDRESS, VECTOR, VECTOR)
def store_pairs(builder: Any, target: Any, even: Any, odd: Any) -> None:
    """32 bf16, of which one vector has those at even places."""
    both = builder.or_(_rounded(builder, even), builder.shl(_rounded(builder, odd), whole(16)))
    builder.store(both, address_of(builder, target, INTS), align=2)


def _rounded(builder: Any, value: Any) -> Any:
    """The bits of the nearest bf16, ties to even."""
    bits = builder.bitcast(value, INTS)
    odd = builder.and_(builder.lshr(bits, whole(16)), whole(1))
    rounded = builder.lshr(builder.add(builder.add(bits, odd), whole(0x7FFF)), whole(16))
    nan = builder.fcmp_unordered("uno", value, value, flags=("nsz",))
    return builder.select(nan, whole(0x7FC0), rounded)


@operation(types.int64, VECTOR)
def not_finite(builder: Any, value: Any) -> Any:
    """A bit for each lane, set where it is infinite or NaN."""
    exponent = whole(0x7F800000)
    found = builder.icmp_unsigned(
        "==", builder.and_(builder.bitcast(value, INTS), exponent), exponent
    )
    return builder.zext(builder.bitcast(found, _I16), _I64)
