"""Rows of fp32 as digits of seven bits, of which the matrix unit makes exact sums of products.

A number of a row is the sum of ``digit[p] * 2 ** (low + 7 * p)`` over the places ``p``, with digits
of its own sign; ``low`` is the place of the last bit of the row's smallest number. A unit of eight
places holds all bits of numbers that lie within ``2**32`` of one another, two hold ``2**88``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils

from sagellm_backend.cpu.compiled.matrix_words import LINE
from sagellm_backend.cpu.compiled.vector_code import (
    INTS,
    LANES,
    address_of,
    first_lanes,
    spread,
    whole,
)
from sagellm_backend.cpu.compiled.vectors import operation

cgutils: Any = _cgutils  # which says nothing of its types

PLACES, BITS = 8, 7
UNIT_BITS = PLACES * BITS
"""Bits of a unit."""

MANTISSA = 24
LOWEST = 149
"""fp32's smallest number is ``2**-149``, whose exponent counts as 0 here."""

NOT_FINITE = 254

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_CODES, _WIDE = ir.VectorType(_I8, 64), ir.VectorType(_I64, 8)
_HALF_ORDER = ir.VectorType(_I32, 32)
_TURNED = ir.Constant(
    _CODES,
    [
        PLACES * (4 * four + number) + place
        for four in range(2)
        for place in range(PLACES)
        for number in range(4)
    ],
)
"""Of every four numbers the first digits, then the second ..."""

_SIGN, _HIDDEN = 1 << 31, 1 << MANTISSA - 1


def _call(builder: Any, name: str, kind: Any, *arguments: Any) -> Any:
    signature = ir.FunctionType(kind, [each.type for each in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _bits(builder: Any, x: Any, index: Any, inputs: Any) -> Any:
    """The bits of LANES numbers of a row, and zeros behind its end."""
    mask = first_lanes(builder, builder.sub(inputs, index))
    place = address_of(builder, builder.add(x, builder.mul(index, _I64(4))), INTS)
    zero = ir.Constant(INTS, None)
    return _call(builder, f"llvm.masked.load.v{LANES}i32.p0", INTS, place, _I32(4), mask, zero)


@operation(types.int64, types.int64, types.int64)
def extent(builder: Any, x: Any, inputs: Any) -> Any:
    """The least exponent of a row's numbers but zeros, and 256 times the greatest.

    The greatest is NOT_FINITE where one is. A row of zeros has 255 and 0.
    """
    low, high = (cgutils.alloca_once(builder, INTS) for _ in range(2))
    builder.store(whole(-1), low)
    builder.store(whole(0), high)
    with cgutils.for_range_slice(builder, _I64(0), inputs, _I64(LANES)) as (index, _):
        magnitude = builder.and_(_bits(builder, x, index, inputs), whole(_SIGN - 1))
        # One less, so that zeros are the greatest.
        for place, value, word in (
            (low, builder.sub(magnitude, whole(1)), "umin"),
            (high, magnitude, "umax"),
        ):
            both = value, builder.load(place)
            builder.store(_call(builder, f"llvm.{word}.v{LANES}i32", INTS, *both), place)
    least = _call(builder, f"llvm.vector.reduce.umin.v{LANES}i32", _I32, builder.load(low))
    most = _call(builder, f"llvm.vector.reduce.umax.v{LANES}i32", _I32, builder.load(high))
    zero = builder.icmp_unsigned("==", least, _I32(-1))
    least = builder.select(zero, _I32(255), _exponent(builder, builder.add(least, _I32(1)), _I32))
    most = _exponent(builder, most, _I32)
    return builder.zext(builder.or_(least, builder.shl(most, _I32(8))), _I64)


def _exponent(builder: Any, magnitude: Any, constant: Any) -> Any:
    """0 for subnormal numbers too, whose last bit counts as much as that of the next ones."""
    raw = builder.lshr(magnitude, constant(MANTISSA - 1))
    least = builder.icmp_unsigned(">", raw, constant(1))
    return builder.sub(builder.select(least, raw, constant(1)), constant(1))


@operation(types.void, *[types.int64] * 5)
def digits(builder: Any, x: Any, inputs: Any, padded: Any, low: Any, target: Any) -> None:
    """A row's digits of the places from the exponent ``low`` on, as the matrix unit takes them.

    For every four inputs there are 64 bytes, 32 of them from ``target`` on: for each place the
    digits of the four. From ``inputs`` to ``padded`` they are zeros.
    """
    lowest = spread(builder, builder.trunc(low, _I32))
    with cgutils.for_range_slice(builder, _I64(0), padded, _I64(LANES)) as (index, _):
        bits = _bits(builder, x, index, inputs)
        magnitude = builder.and_(bits, whole(_SIGN - 1))
        normal = builder.icmp_unsigned(">=", magnitude, whole(_HIDDEN))
        fraction = builder.and_(magnitude, whole(_HIDDEN - 1))
        mantissa = builder.select(normal, builder.or_(fraction, whole(_HIDDEN)), fraction)
        shift = builder.sub(_exponent(builder, magnitude, whole), lowest)
        place = builder.add(target, builder.mul(index, _I64(LANES)))
        for half in range(2):
            lanes = list(range(8 * half, 8 * half + 8))
            order = ir.Constant(ir.VectorType(_I32, 8), lanes)
            number, count, sign = (
                builder.shuffle_vector(each, each, order) for each in (mantissa, shift, bits)
            )
            codes = _eight(builder, number, count, sign)
            turned = _call(builder, "llvm.x86.avx512.permvar.qi.512", _CODES, codes, _TURNED)
            for four in range(2):
                lanes = ir.Constant(_HALF_ORDER, list(range(32 * four, 32 * four + 32)))
                part = builder.shuffle_vector(turned, turned, lanes)
                line = builder.add(place, _I64(LINE * (2 * half + four)))
                builder.store(part, address_of(builder, line, part.type), align=32)


def _eight(builder: Any, mantissa: Any, shift: Any, sign: Any) -> Any:
    """For each of eight numbers the digits of ``mantissa << shift``, a byte for each place."""
    wide, count = builder.zext(mantissa, _WIDE), builder.sext(shift, _WIDE)
    back = builder.sub(ir.Constant(_WIDE, None), count)
    # These shift everything out where a count, read without its sign, is 64 or more.
    left = _call(builder, "llvm.x86.avx512.psllv.q.512", _WIDE, wide, count)
    right = _call(builder, "llvm.x86.avx512.psrlv.q.512", _WIDE, wide, back)
    number = builder.bitcast(builder.or_(left, right), _CODES)
    places = ir.Constant(_CODES, [BITS * place for place in range(PLACES)] * 8)
    name = "llvm.x86.avx512.pmultishift.qb.512"
    found = _call(builder, name, _CODES, places, number)
    found = builder.and_(found, ir.Constant(_CODES, [(1 << BITS) - 1] * 64))
    negative = builder.ashr(sign, ir.Constant(sign.type, [31] * 8))
    negative = builder.bitcast(builder.sext(negative, _WIDE), _CODES)
    return builder.sub(builder.xor(found, negative), negative)
