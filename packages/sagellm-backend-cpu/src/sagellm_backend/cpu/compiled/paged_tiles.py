"""Tiles of attention: several rows of queries against keys and values that are read once for all.

What stands in registers is a tile: of the products with keys, LANES sums of (keys x rows), which
one tree of shuffles adds up; of the outputs, (rows x columns). Rows of queries, scores and outputs
are fp32 in scratch memory; keys and values are by address, in their dtype.

Written out for LLVM, since Numba takes a tenth of a second for each function of Python, of which
there would be eight. Importing this imports Numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from sagellm_backend.cpu.compiled.paged_words import HEAD_SCORES, LINE, SCORES
from sagellm_backend.cpu.compiled.storage import STORAGES
from sagellm_backend.cpu.compiled.vector_code import (
    BYTES,
    FLOATS,
    LANES,
    address_of,
    constant,
    first_lanes,
    multiply_add,
    prefetch_line,
    read,
    read_parts,
    spread,
    sums,
    write,
)
from sagellm_backend.cpu.compiled.vectors import operation

GROUP = 16
"""Keys for which outputs stay in registers."""

_I64, _FLOAT = ir.IntType(64), ir.FloatType()
_ADDRESS = types.int64


def scores_of(dtype: str, rows: int) -> Callable[..., Any]:
    """``scores(q, stride, state, keys, ahead, head, apart, heads, dim, count, scores)``.

    Of a power of two of rows, ``stride`` bytes apart, for each of ``heads`` heads, ``state`` bytes
    apart. ``keys`` lists the addresses of ``count`` keys, and ``ahead`` those of keys to ask for, of
    which those of the first head lie ``head`` bytes behind, and of the others ``apart`` bytes on;
    both lists go on to a multiple of LANES, and so do the scores.
    """
    width, nbytes = LANES // rows, STORAGES[dtype].nbytes

    @operation(types.void, *[_ADDRESS] * 11)
    def scores(
        builder: Any,
        q: Any,
        stride: Any,
        state: Any,
        keys: Any,
        ahead: Any,
        head: Any,
        apart: Any,
        heads: Any,
        dim: Any,
        count: Any,
        scores: Any,
    ) -> None:
        totals = [_room(builder) for _ in range(LANES)]

        def tile(first: Any, number: Any) -> None:
            offset = builder.add(head, builder.mul(apart, number))
            query = builder.add(q, builder.mul(state, number))

            def add(at: Any, parts: int, mask: Any) -> None:
                shift = builder.add(offset, _times(builder, at, nbytes))
                soon = _listed(builder, ahead, first, shift, width)
                places = _listed(builder, keys, first, shift, width)
                queries = [
                    [read(builder, builder.add(row, _I64(part * BYTES))) for part in range(parts)]
                    for row in _rows(
                        builder, builder.add(query, _times(builder, at, 4)), stride, rows
                    )
                ]
                for index, (place, next_place) in enumerate(zip(places, soon, strict=True)):
                    for line in range(0, parts * LANES * nbytes, LINE):
                        prefetch_line(builder, builder.add(next_place, _I64(line)))
                    key = read_parts(builder, dtype, place, parts, mask)
                    for row, numbers in enumerate(queries):
                        for x, y in zip(numbers, key, strict=True):
                            _more(builder, totals[row * width + index], x, y)

            for each in totals:
                builder.store(constant(0.0), each)
            _columns(builder, dim, 4 if rows < 4 else 2, add)
            found = sums(builder, [builder.load(each) for each in totals])
            target = builder.add(scores, _times(builder, number, HEAD_SCORES))
            target = builder.add(target, _times(builder, first, 4))
            for row in range(rows):
                lanes = list(range(row * width, (row + 1) * width))
                kind = ir.VectorType(ir.IntType(32), width)
                part = builder.shuffle_vector(found, found, ir.Constant(kind, lanes))
                write(builder, builder.add(target, _I64(row * SCORES)), part)

        with _steps(builder, count, width) as first, _steps(builder, heads, 1) as number:
            tile(first, number)

    result: Callable[..., Any] = scores
    return result


def outputs_of(dtype: str, rows: int) -> Callable[..., Any]:
    """``outputs(o, stride, state, weights, values, ahead, head, apart, heads, dim, count)``.

    Adds the values by the weights of the rows, behind which their factors stand: what is there is
    multiplied by them first. Strides and lists are like those of the scores; nothing behind
    ``count`` is read.
    """
    nbytes = STORAGES[dtype].nbytes

    @operation(types.void, *[_ADDRESS] * 11)
    def outputs(
        builder: Any,
        o: Any,
        stride: Any,
        state: Any,
        weights: Any,
        values: Any,
        ahead: Any,
        head: Any,
        apart: Any,
        heads: Any,
        dim: Any,
        count: Any,
    ) -> None:
        def group(first: Any, last: Any, number: Any) -> None:
            offset = builder.add(head, builder.mul(apart, number))
            target = builder.add(o, builder.mul(state, number))
            mine = builder.add(weights, _times(builder, number, HEAD_SCORES))
            begins = builder.icmp_signed("==", first, _I64(0))
            factors = builder.add(mine, _I64(HEAD_SCORES - LINE))
            scales = [
                spread(builder, builder.select(begins, _number(builder, place), _FLOAT(1.0)))
                for place in _rows(builder, factors, _I64(4), rows)
            ]

            def add(at: Any, parts: int, mask: Any) -> None:
                totals = [_room(builder) for _ in range(rows * parts)]
                shift = builder.add(offset, _times(builder, at, nbytes))
                lines = _rows(builder, builder.add(target, _times(builder, at, 4)), stride, rows)
                places = [
                    builder.add(row, _I64(part * BYTES)) for row in lines for part in range(parts)
                ]
                for index, (place, each) in enumerate(zip(places, totals, strict=True)):
                    before = builder.fmul(read(builder, place), scales[index // parts])
                    builder.store(before, each)
                with _steps(builder, last, 1, first) as key:
                    (soon,) = _listed(builder, ahead, key, shift, 1)
                    for line in range(0, parts * LANES * nbytes, LINE):
                        prefetch_line(builder, builder.add(soon, _I64(line)))
                    (place,) = _listed(builder, values, key, shift, 1)
                    value = read_parts(builder, dtype, place, parts, mask)
                    weight = builder.add(mine, _times(builder, key, 4))
                    for row in range(rows):
                        number = _number(builder, builder.add(weight, _I64(row * SCORES)))
                        for part, each in enumerate(value):
                            _more(
                                builder, totals[row * parts + part], spread(builder, number), each
                            )
                for place, each in zip(places, totals, strict=True):
                    write(builder, place, builder.load(each))

            _columns(builder, dim, 4 if rows < 8 else 2, add)

        with _steps(builder, count, GROUP) as first:
            end = builder.add(first, _I64(GROUP))
            last = builder.select(builder.icmp_signed("<", end, count), end, count)
            with _steps(builder, heads, 1) as number:
                group(first, last, number)

    result: Callable[..., Any] = outputs
    return result


@operation(types.void, *[_ADDRESS] * 11)
def no_tile(
    builder: Any,
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    e: Any,
    f: Any,
    g: Any,
    h: Any,
    i: Any,
    j: Any,
    k: Any,
) -> None:
    """In the place of a tile that is not compiled."""


def _columns(builder: Any, dim: Any, most: int, add: Callable[..., None]) -> None:
    """``add(at, parts, mask)`` for the columns of a row: several vectors, pairs, and what is left."""
    start = _I64(0)
    for parts in (4, 2)[most == 2 :]:
        stop = builder.and_(dim, _I64(-parts * LANES))
        with _steps(builder, stop, parts * LANES, start) as at:
            add(at, parts, None)
        start = stop
    with _steps(builder, dim, LANES, start) as at:
        add(at, 1, first_lanes(builder, builder.sub(dim, at)))


@contextmanager
def _steps(builder: Any, stop: Any, step: int, start: Any = None) -> Iterator[Any]:
    """A loop over ``range(start, stop, step)``."""
    first = _I64(0) if start is None else start
    with cgutils.for_range_slice(builder, first, stop, _I64(step), _I64) as (index, _):
        yield index


def _room(builder: Any) -> Any:
    """A vector that is written and read, which LLVM makes a register of."""
    return cgutils.alloca_once(builder, FLOATS)  # type: ignore[no-untyped-call]


def _rows(builder: Any, address: Any, stride: Any, rows: int) -> list[Any]:
    return [builder.add(address, builder.mul(stride, _I64(row))) for row in range(rows)]


def _times(builder: Any, index: Any, nbytes: int) -> Any:
    return builder.mul(index, _I64(nbytes))


def _number(builder: Any, address: Any) -> Any:
    return builder.load(address_of(builder, address, _FLOAT), align=4)


def _listed(builder: Any, addresses: Any, first: Any, offset: Any, count: int) -> list[Any]:
    """Some of a list of addresses, with the offset."""
    place = builder.add(addresses, _times(builder, first, 8))
    found = []
    for number in range(count):
        pointer = address_of(builder, builder.add(place, _I64(8 * number)), _I64)
        # Atomic only so that LLVM reads it where it is used: it would keep all of them, and spill.
        found.append(builder.load_atomic(pointer, "monotonic", 8))
    return [builder.add(each, offset) for each in found]


def _more(builder: Any, total: Any, a: Any, b: Any) -> None:
    builder.store(multiply_add(builder, a, b, builder.load(total)), total)
