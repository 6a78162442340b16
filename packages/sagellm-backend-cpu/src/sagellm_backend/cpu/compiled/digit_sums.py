"""What the matrix unit made of digits, put together: outputs of a row in fp32."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils

from sagellm_backend.cpu.compiled.digits import BITS, LOWEST, PLACES, UNIT_BITS
from sagellm_backend.cpu.compiled.matrix_words import LINE, MATRIX, SIDE
from sagellm_backend.cpu.compiled.vector_code import address_of, sums
from sagellm_backend.cpu.compiled.vectors import operation

cgutils: Any = _cgutils  # which says nothing of its types

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_DOUBLES, _EIGHT = ir.VectorType(_DOUBLE, PLACES), ir.VectorType(_FLOAT, PLACES)
_LONGS = ir.VectorType(_I64, PLACES)
_ALL = ir.Constant(ir.VectorType(ir.IntType(1), PLACES), [1] * PLACES)
_FUSED = ("contract",)  # a flag of its own keeps Numba from letting LLVM reorder an instruction


@operation(types.void, *[types.int64] * 4)
def collect(builder: Any, scale: Any, bias: Any, apart: Any, target: Any) -> None:
    """The scales of sixteen outputs, so many ``apart``, and their biases or zeros, in fp64."""
    for half in range(SIDE // PLACES):
        places = _places(builder, half, apart)
        shift = cgutils.alloca_once(builder, _DOUBLES)
        builder.store(ir.Constant(_DOUBLES, None), shift)
        with builder.if_then(builder.icmp_signed("!=", bias, _I64(0))):
            builder.store(_gathered(builder, bias, places), shift)
        both = _gathered(builder, scale, places), builder.load(shift)
        for number, value in enumerate(both):
            place = builder.add(target, _I64(8 * (SIDE * number + PLACES * half)))
            builder.store(value, address_of(builder, place, _DOUBLES), align=64)


@operation(types.void, *[types.int64] * 7)
def put_together(
    builder: Any, totals: Any, first: Any, units: Any, low: Any, factors: Any, y: Any, apart: Any
) -> None:
    """Sixteen outputs of a row, of the sums of its digits in units from ``first`` on.

    ``factors`` is what :func:`collect` left.
    """
    powers = ir.Constant(_DOUBLES, [2.0 ** (BITS * place) for place in range(PLACES)])
    last = builder.add(first, units)
    for half in range(SIDE // PLACES):
        result = cgutils.alloca_once(builder, _DOUBLES)
        builder.store(ir.Constant(_DOUBLES, None), result)
        with cgutils.for_range_slice(builder, first, last, _I64(1)) as (unit, _):
            column = builder.add(totals, column_of(builder, unit, _I64(2 * MATRIX)))
            parts = []
            for output in range(PLACES):
                place = builder.add(column, _I64(LINE * (PLACES * half + output)))
                kind = ir.VectorType(_I32, PLACES)
                found = builder.load(address_of(builder, place, kind), align=32)
                parts.append(builder.fmul(builder.sitofp(found, _DOUBLES), powers, _FUSED))
            more = builder.mul(builder.sub(unit, first), _I64(UNIT_BITS))
            size = _power(builder, builder.add(low, more))
            added = builder.fmul(sums(builder, parts, _FUSED), size, _FUSED)
            builder.store(builder.fadd(builder.load(result), added, _FUSED), result)
        scale, bias = (
            builder.load(
                address_of(
                    builder,
                    builder.add(factors, _I64(8 * (SIDE * number + PLACES * half))),
                    _DOUBLES,
                ),
                align=64,
            )
            for number in range(2)
        )
        total = builder.fadd(builder.fmul(builder.load(result), scale, _FUSED), bias, _FUSED)
        narrow = builder.fptrunc(total, _EIGHT)
        _scatter(builder, narrow, y, _places(builder, half, apart))


def _places(builder: Any, half: int, apart: Any) -> Any:
    numbers = ir.Constant(_LONGS, list(range(PLACES * half, PLACES * half + PLACES)))
    return builder.mul(_spread(builder, apart), numbers)


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
