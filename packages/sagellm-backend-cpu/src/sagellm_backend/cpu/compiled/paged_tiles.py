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

from sagellm_backend.cpu.compiled.paged_words import KEYS, LINE
from sagellm_backend.cpu.compiled.storage import STORAGES
from sagellm_backend.cpu.compiled.vectors import (
    FLOATS,
    LANES,
    address_of,
    constant,
    first_lanes,
    multiply_add,
    operation,
    prefetch_line,
    read,
    read_stored,
    spread,
    sums,
    write,
)

SCORES = 4 * KEYS
"""Bytes of a row of scores."""

_I64, _FLOAT = ir.IntType(64), ir.FloatType()
_ADDRESS = types.int64


def scores_of(dtype: str, rows: int) -> Callable[..., Any]:
    """``scores(q, stride, keys, ahead, offset, dim, count, scores)`` of a power of two of rows.

    ``keys`` lists the addresses of ``count`` keys, and ``ahead`` those that will be read next, to
    all of which ``offset`` is added; both lists go on to a multiple of LANES, and so do the scores.
    """
    width, nbytes = LANES // rows, STORAGES[dtype].nbytes

    @operation(types.void, *[_ADDRESS] * 8)
    def scores(
        builder: Any,
        q: Any,
        stride: Any,
        keys: Any,
        ahead: Any,
        offset: Any,
        dim: Any,
        count: Any,
        scores: Any,
    ) -> None:
        totals = [cgutils.alloca_once(builder, FLOATS) for _ in range(LANES)]
        whole = builder.and_(dim, _I64(-LANES))

        def add(at: Any, places: list[Any], mask: Any) -> None:
            shift = builder.mul(at, _I64(nbytes))
            queries = [
                read(builder, builder.add(place, builder.mul(at, _I64(4))))
                for place in _rows(builder, q, stride, rows)
            ]
            for number, place in enumerate(places):
                key = read_stored(builder, dtype, builder.add(place, shift), mask)
                for row, query in enumerate(queries):
                    _more(builder, totals[row * width + number], query, key)

        with _steps(builder, count, width) as first:
            for place in _listed(builder, ahead, first, offset, width):
                with _steps(builder, builder.mul(dim, _I64(nbytes)), LINE) as line:
                    prefetch_line(builder, builder.add(place, line))
            places = _listed(builder, keys, first, offset, width)
            for each in totals:
                builder.store(constant(0.0), each)
            with _steps(builder, whole, LANES) as at:
                add(at, places, None)
            with builder.if_then(builder.icmp_signed("<", whole, dim)):
                add(whole, places, first_lanes(builder, builder.sub(dim, whole)))
            found = sums(builder, [builder.load(each) for each in totals])
            target = builder.add(scores, builder.mul(first, _I64(4)))
            for row in range(rows):
                lanes = list(range(row * width, (row + 1) * width))
                kind = ir.VectorType(ir.IntType(32), width)
                part = builder.shuffle_vector(found, found, ir.Constant(kind, lanes))
                write(builder, builder.add(target, _I64(row * SCORES)), part)

    return scores


def outputs_of(dtype: str, rows: int) -> Callable[..., Any]:
    """``outputs(o, stride, factors, weights, values, ahead, offset, dim, count)``.

    Scales each row of outputs by its factor, and adds the values by the weights of the row. The
    lists are like those of the keys; nothing behind ``count`` is read.
    """
    columns, nbytes = max(1, min(4, LANES // rows)), STORAGES[dtype].nbytes

    @operation(types.void, *[_ADDRESS] * 9)
    def outputs(
        builder: Any,
        o: Any,
        stride: Any,
        factors: Any,
        weights: Any,
        values: Any,
        ahead: Any,
        offset: Any,
        dim: Any,
        count: Any,
    ) -> None:
        factor = [_number(builder, builder.add(factors, _I64(4 * row))) for row in range(rows)]
        scales = [spread(builder, each) for each in factor]

        def columns_at(at: Any, wide: int, mask: Any) -> None:
            totals = [cgutils.alloca_once(builder, FLOATS) for _ in range(rows * wide)]
            shift = builder.add(offset, builder.mul(at, _I64(nbytes)))
            places = [
                builder.add(row, builder.mul(builder.add(at, _I64(column * LANES)), _I64(4)))
                for row in _rows(builder, o, stride, rows)
                for column in range(wide)
            ]
            for index, (place, each) in enumerate(zip(places, totals, strict=True)):
                before = builder.fmul(read(builder, place), scales[index // wide])
                builder.store(before, each)
            with _steps(builder, count, 1) as key:
                (soon,) = _listed(builder, ahead, key, shift, 1)
                for line in range(0, wide * LANES * nbytes, LINE):
                    prefetch_line(builder, builder.add(soon, _I64(line)))
                (value,) = _listed(builder, values, key, shift, 1)
                parts = [
                    read_stored(builder, dtype, builder.add(value, _I64(part)), mask)
                    for part in range(0, wide * LANES * nbytes, LANES * nbytes)
                ]
                weight = builder.add(weights, builder.mul(key, _I64(4)))
                for row in range(rows):
                    mine = _number(builder, builder.add(weight, _I64(row * SCORES)))
                    for column, part in enumerate(parts):
                        _more(builder, totals[row * wide + column], spread(builder, mine), part)
            for place, each in zip(places, totals, strict=True):
                write(builder, place, builder.load(each))

        wide = builder.and_(dim, _I64(-columns * LANES))
        with _steps(builder, wide, columns * LANES) as at:
            columns_at(at, columns, None)
        # Not read in one go with the masked rest: masked loads of half types cost more.
        whole = builder.and_(dim, _I64(-LANES))
        with _steps(builder, whole, LANES, wide) as at:
            columns_at(at, 1, None)
        with builder.if_then(builder.icmp_signed("<", whole, dim)):
            columns_at(whole, 1, first_lanes(builder, builder.sub(dim, whole)))

    return outputs


@contextmanager
def _steps(builder: Any, stop: Any, step: int, start: Any = None) -> Iterator[Any]:
    """A loop over ``range(start, stop, step)``."""
    first = _I64(0) if start is None else start
    with cgutils.for_range_slice(builder, first, stop, _I64(step), _I64) as (index, _):
        yield index


def _rows(builder: Any, address: Any, stride: Any, rows: int) -> list[Any]:
    return [builder.add(address, builder.mul(stride, _I64(row))) for row in range(rows)]


def _number(builder: Any, address: Any) -> Any:
    return builder.load(address_of(builder, address, _FLOAT), align=4)


def _listed(builder: Any, addresses: Any, first: Any, offset: Any, count: int) -> list[Any]:
    """Some of a list of addresses, with the offset."""
    place = builder.add(addresses, builder.mul(first, _I64(8)))
    found = [
        builder.load(address_of(builder, builder.add(place, _I64(8 * number)), _I64), align=8)
        for number in range(count)
    ]
    return [builder.add(each, offset) for each in found]


def _more(builder: Any, total: Any, a: Any, b: Any) -> None:
    builder.store(multiply_add(builder, a, b, builder.load(total)), total)
