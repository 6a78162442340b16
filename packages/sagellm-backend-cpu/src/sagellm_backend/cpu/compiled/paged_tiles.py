"""Tiles of attention: several rows of queries against keys and values that are read once for all.

What stands in registers is a tile: of the products with keys, LANES sums of (keys x rows), which
one tree of shuffles adds up; of the outputs, (rows x columns). Rows of queries, scores and outputs
are fp32 in scratch memory; keys and values are by address, in their dtype. Importing this imports Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types

from sagellm_backend.cpu.compiled.paged_words import KEYS, LINE
from sagellm_backend.cpu.compiled.storage import FAST, STORAGES, prefetch, word
from sagellm_backend.cpu.compiled.vectors import (
    BYTES,
    LANES,
    VECTOR,
    constant,
    first_lanes,
    multiply_add,
    operation,
    read,
    read_stored,
    spread,
    sums,
    write,
)

SCORES = 4 * KEYS
"""Bytes of a row of scores."""

_I64, _FLOAT = ir.IntType(64), ir.FloatType()


def tile(dtype: str, rows: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two products of a power of two of rows, at most LANES, with keys and values of a dtype.

    ``scores(q, stride, keys, offset, dim, count, scores, ahead)`` and
    ``outputs(o, stride, factors, weights, values, offset, dim, count, ahead)``: the lists ``keys``,
    ``values`` and ``ahead`` hold the addresses of rows, to which ``offset`` is added; ``ahead`` are
    those that will be read next. Strides and offsets are in bytes.
    """
    return _scores(dtype, rows), _outputs(dtype, rows)


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call."""
    # What is only called from compiled code needs no entries for Python and for C.
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: Callable[..., Any] = njit(fastmath=FAST, error_model="numpy", **options)(function)
    return compiled


def _several(count: int) -> Any:
    return types.UniTuple(VECTOR, count)  # type: ignore[no-untyped-call]


def _packed(builder: Any, values: list[Any]) -> Any:
    result = ir.Constant(ir.ArrayType(values[0].type, len(values)), ir.Undefined)
    for index, value in enumerate(values):
        result = builder.insert_value(result, value, index)
    return result


def _unpacked(builder: Any, values: Any) -> list[Any]:
    return [builder.extract_value(values, index) for index in range(values.type.count)]


def _at(builder: Any, address: Any, stride: Any, number: int) -> Any:
    return builder.add(address, builder.mul(stride, _I64(number))) if number else address


def _number(builder: Any, address: Any) -> Any:
    return builder.load(builder.inttoptr(address, _FLOAT.as_pointer()), align=4)


def _listed(builder: Any, addresses: Any, number: int) -> Any:
    place = builder.add(addresses, _I64(8 * number))
    return builder.load(builder.inttoptr(place, _I64.as_pointer()), align=8)


def _scores(dtype: str, rows: int) -> Callable[..., Any]:
    width, nbytes = LANES // rows, STORAGES[dtype].nbytes
    tile = _several(LANES)
    address = types.int64

    @operation(tile)
    def nothing(builder: Any) -> Any:
        return _packed(builder, [constant(0.0)] * LANES)

    def add(builder: Any, acc: Any, q: Any, stride: Any, keys: Any, offset: Any, mask: Any) -> Any:
        queries = [read(builder, _at(builder, q, stride, row)) for row in range(rows)]
        totals = _unpacked(builder, acc)
        for number in range(width):
            place = builder.add(_listed(builder, keys, number), offset)
            key = read_stored(builder, dtype, place, mask)
            for row, query in enumerate(queries):
                index = row * width + number
                totals[index] = multiply_add(builder, query, key, totals[index])
        return _packed(builder, totals)

    @operation(tile, tile, address, address, address, address)
    def products(builder: Any, acc: Any, q: Any, stride: Any, keys: Any, offset: Any) -> Any:
        return add(builder, acc, q, stride, keys, offset, None)

    @operation(tile, tile, address, address, address, address, address)
    def last_products(
        builder: Any, acc: Any, q: Any, stride: Any, keys: Any, offset: Any, left: Any
    ) -> Any:
        return add(builder, acc, q, stride, keys, offset, first_lanes(builder, left))

    @operation(types.void, address, tile)
    def put(builder: Any, place: Any, acc: Any) -> None:
        found = sums(builder, _unpacked(builder, acc))
        for row in range(rows):
            lanes = range(row * width, (row + 1) * width)
            kind = ir.VectorType(ir.IntType(32), width)
            part = builder.shuffle_vector(found, found, ir.Constant(kind, list(lanes)))
            write(builder, builder.add(place, _I64(row * SCORES)), part)

    @jit
    def scores(
        q: int, stride: int, keys: int, offset: int, dim: int, count: int, scores: int, ahead: int
    ) -> None:
        whole = dim & -LANES
        for first in range(0, count, width):
            for number in range(first, first + width):
                row = word(ahead, number) + offset
                for line in range(0, dim * nbytes, LINE):
                    prefetch(row + line)
            acc, some = nothing(), keys + 8 * first
            for at in range(0, whole, LANES):
                acc = products(acc, q + 4 * at, stride, some, offset + nbytes * at)
            if whole < dim:
                left = dim - whole
                acc = last_products(acc, q + 4 * whole, stride, some, offset + nbytes * whole, left)
            put(scores + 4 * first, acc)

    return scores


def _outputs(dtype: str, rows: int) -> Callable[..., Any]:
    columns, nbytes = max(1, min(4, LANES // rows)), STORAGES[dtype].nbytes
    begin_wide, add_wide, end_wide = _columns(dtype, rows, columns)
    begin, add, end = _columns(dtype, rows, 1)
    address, single = types.int64, _several(rows)

    @operation(single, single, address, address, address)
    def add_last(builder: Any, acc: Any, weights: Any, value: Any, left: Any) -> Any:
        return _add(builder, dtype, rows, acc, weights, [(value, first_lanes(builder, left))])

    @jit
    def outputs(
        o: int,
        stride: int,
        factors: int,
        weights: int,
        values: int,
        offset: int,
        dim: int,
        count: int,
        ahead: int,
    ) -> None:
        at = 0
        while at + columns * LANES <= dim:
            acc = begin_wide(o + 4 * at, stride, factors)
            shift = offset + nbytes * at
            for key in range(count):
                row = word(ahead, key) + shift
                for line in range(0, columns * LANES * nbytes, LINE):
                    prefetch(row + line)
                acc = add_wide(acc, weights + 4 * key, word(values, key) + shift)
            end_wide(o + 4 * at, stride, acc)
            at += columns * LANES
        while at < dim:
            one = begin(o + 4 * at, stride, factors)
            shift = offset + nbytes * at
            if at + LANES <= dim:
                for key in range(count):
                    one = add(one, weights + 4 * key, word(values, key) + shift)
            else:
                for key in range(count):
                    one = add_last(one, weights + 4 * key, word(values, key) + shift, dim - at)
            end(o + 4 * at, stride, one)
            at += LANES

    return outputs


def _columns(dtype: str, rows: int, columns: int) -> tuple[Any, Any, Any]:
    """How a tile of outputs is read and scaled, added to, and written."""
    kind, address = _several(rows * columns), types.int64
    step = LANES * STORAGES[dtype].nbytes

    def places(builder: Any, o: Any, stride: Any) -> list[Any]:
        return [
            builder.add(_at(builder, o, stride, row), _I64(column * BYTES))
            for row in range(rows)
            for column in range(columns)
        ]

    @operation(kind, address, address, address)
    def begin(builder: Any, o: Any, stride: Any, factors: Any) -> Any:
        scales = [
            spread(builder, _number(builder, builder.add(factors, _I64(4 * row))))
            for row in range(rows)
        ]
        return _packed(
            builder,
            [
                builder.fmul(read(builder, place), scales[index // columns])
                for index, place in enumerate(places(builder, o, stride))
            ],
        )

    @operation(kind, kind, address, address)
    def add(builder: Any, acc: Any, weights: Any, value: Any) -> Any:
        chunks = [(builder.add(value, _I64(column * step)), None) for column in range(columns)]
        return _add(builder, dtype, rows, acc, weights, chunks)

    @operation(types.void, address, address, kind)
    def end(builder: Any, o: Any, stride: Any, acc: Any) -> None:
        for place, value in zip(places(builder, o, stride), _unpacked(builder, acc), strict=True):
            write(builder, place, value)

    return begin, add, end


def _add(
    builder: Any, dtype: str, rows: int, acc: Any, weights: Any, chunks: list[tuple[Any, Any]]
) -> Any:
    """The outputs with one value more, of which every row has its weight."""
    totals = _unpacked(builder, acc)
    values = [read_stored(builder, dtype, place, mask) for place, mask in chunks]
    for row in range(rows):
        weight = spread(builder, _number(builder, builder.add(weights, _I64(row * SCORES))))
        for column, value in enumerate(values):
            index = row * len(values) + column
            totals[index] = multiply_add(builder, weight, value, totals[index])
    return _packed(builder, totals)
