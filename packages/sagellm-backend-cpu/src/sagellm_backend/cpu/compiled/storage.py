"""What compiled kernels are made of: memory by address, half types by their bits, work by chunks.

Importing this imports Numba. Addresses and indices are int64 and are not checked; indices count
elements. Everything here is for use inside of compiled code only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_HALF, _FLOAT = ir.HalfType(), ir.FloatType()

FAST = {"reassoc", "nsz", "contract"}
"""Sums may be taken in any order; infinities and NaN stay what they are."""


class Storage(NamedTuple):
    """How one dtype lies in memory: ``load(address, index)`` to fp32, ``store(..., value)``."""

    nbytes: int
    load: Callable[..., Any]
    store: Callable[..., Any]


class Bits(NamedTuple):
    """How one dtype is read: ``widen`` and ``narrow`` take a builder of LLVM and a value.

    They make fp32 of the bits, of a vector of them too, and bits of one fp32.
    """

    width: int
    widen: Callable[..., Any]
    narrow: Callable[..., Any]


def _element(builder: Any, address: Any, index: Any, bits: int) -> Any:
    pointer = builder.inttoptr(address, ir.IntType(bits).as_pointer())
    return builder.gep(pointer, [index], inbounds=True)


def _storage(kind: Bits) -> Storage:
    bits, widen, narrow = kind

    @intrinsic
    def load(context: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = _element(builder, args[0], args[1], bits)
            return widen(builder, builder.load(element, align=bits // 8))

        return types.float32(types.int64, types.int64), generate

    @intrinsic
    def store(context: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            element = _element(builder, args[0], args[1], bits)
            builder.store(narrow(builder, args[2]), element, align=bits // 8)

        return types.void(types.int64, types.int64, types.float32), generate

    return Storage(bits // 8, load, store)


def _like(kind: Any, element: Any) -> Any:
    """``element``, or a vector of as many of it as ``kind`` is one of."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _widen_bf16(builder: Any, bits: Any) -> Any:
    wide = builder.zext(bits, _like(bits.type, _I32))
    places = [16] * wide.type.count if isinstance(wide.type, ir.VectorType) else 16
    return builder.bitcast(
        builder.shl(wide, ir.Constant(wide.type, places)), _like(bits.type, _FLOAT)
    )


def _widen_fp16(builder: Any, bits: Any) -> Any:
    half = builder.bitcast(bits, _like(bits.type, _HALF))
    return builder.fpext(half, _like(bits.type, _FLOAT))


def _narrow_bf16(builder: Any, value: Any) -> Any:
    # To the nearest, ties to even; a NaN could become an infinity or a zero by that and stays one.
    bits = builder.bitcast(value, _I32)
    odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
    rounded = builder.add(builder.add(bits, odd), _I32(0x7FFF))
    nan = builder.fcmp_unordered("uno", value, value)
    return builder.select(nan, _I16(0x7FC0), builder.trunc(builder.lshr(rounded, _I32(16)), _I16))


BITS = {
    "fp32": Bits(
        32,
        lambda builder, bits: builder.bitcast(bits, _like(bits.type, _FLOAT)),
        lambda builder, value: builder.bitcast(value, _I32),
    ),
    "fp16": Bits(
        16,
        _widen_fp16,
        lambda builder, value: builder.bitcast(builder.fptrunc(value, _HALF), _I16),
    ),
    "bf16": Bits(16, _widen_bf16, _narrow_bf16),
}
STORAGES = {dtype: _storage(kind) for dtype, kind in BITS.items()}
"""By the name of the dtype."""


def mover(nbytes: int, *, past_caches: bool = False) -> Callable[..., Any]:
    """``move(target, source)`` of so many bytes. One past the caches asks for their alignment."""
    unit = ir.VectorType(_I8, nbytes)

    @intrinsic
    def move(context: Any, target: Any, source: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to, origin = (builder.inttoptr(address, unit.as_pointer()) for address in args)
            align = nbytes if past_caches else 1
            store = builder.store(builder.load(origin, align=1), to, align=align)
            if past_caches:
                store.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))

        return types.void(types.int64, types.int64), generate

    return move


@intrinsic
def word(context: Any, words: Any, index: Any) -> Any:
    """The int64 at an index of the array of arguments."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_element(builder, args[0], args[1], 64), align=8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def set_word(context: Any, words: Any, index: Any, value: Any) -> Any:
    """Put an int64 at an index."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _element(builder, args[0], args[1], 64), align=8)

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def int32(context: Any, address: Any, index: Any) -> Any:
    """The int32 at an index, as int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(_element(builder, args[0], args[1], 32), align=4)
        return builder.sext(value, _I64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def set_int32(context: Any, address: Any, value: Any) -> Any:
    """Put an int32 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I32.as_pointer())
        builder.store(builder.trunc(args[1], _I32), pointer, align=4)

    return types.void(types.int64, types.int64), generate


@intrinsic
def arrive(context: Any, counter: Any) -> Any:
    """Count an int32 up, and see all that was written before others counted it up: its old value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I32.as_pointer())
        return builder.sext(builder.atomic_rmw("add", pointer, _I32(1), "acq_rel"), _I64)

    return types.int64(types.int64), generate


@intrinsic
def next_chunk(context: Any, words: Any) -> Any:
    """Take the next number from the counter in word 0: threads share work by it, in any speed."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", counter, _I64(1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def prefetch(context: Any, address: Any) -> Any:
    """Ask for the cache line of an address, which need not be valid."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        call = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(call, [builder.inttoptr(args[0], pointer), _I32(0), _I32(2), _I32(1)])

    return types.void(types.int64), generate


@intrinsic
def square_root(context: Any, value: Any) -> Any:
    """The root of an fp32, by an instruction: ``math.sqrt`` would call a library."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        root = builder.module.declare_intrinsic("llvm.sqrt", [_FLOAT])
        return builder.call(root, [args[0]])

    return types.float32(types.float32), generate
