"""Vectors of fp32 for compiled code: as many lanes as a register of this processor has.

LLVM's own vectoriser neither shares what was loaded between several sums nor adds up several
vectors at once; kernels that live of these say what they want. Importing this imports Numba.
Addresses are int64 and are not checked. Everything here is for use inside of compiled code only.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from sagellm_backend.cpu.compiled.storage import FAST

_I8, _I16, _I32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
"""fp32 numbers in a vector."""

BYTES = 4 * LANES

FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I32, LANES)
_EXACT = ("nsz",)  # any flag of its own keeps Numba from letting LLVM reorder an instruction
_ROUND = 1.5 * 2**23
_EXP2 = [math.log(2) ** power / math.factorial(power) for power in range(8)]


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"fp32x{LANES}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)  # type: ignore[no-untyped-call]


VECTOR: Any = _Vector()


def operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of a function that takes a builder and LLVM values of these types."""

    def decorate(generate: Callable[..., Any]) -> Any:
        def typed(context: Any, *_: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                return generate(builder, *args)

            return result(*arguments), emit

        names = ["context", *list(inspect.signature(generate).parameters)[1:]]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        # Numba asks for the names of the arguments, and takes none that are starred.
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in names]
        )
        typed.__name__ = generate.__name__
        return intrinsic(typed)

    return decorate


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that kernels call."""
    # What is only called from compiled code needs no entries for Python and for C.
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: Callable[..., Any] = njit(fastmath=FAST, error_model="numpy", **options)(function)
    return compiled


def constant(value: float) -> Any:
    """A number in all lanes."""
    return ir.Constant(FLOATS, [value] * LANES)


def _whole(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


def spread(builder: Any, value: Any) -> Any:
    """A scalar in all lanes of a vector."""
    kind = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(_INTS, [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def address_of(builder: Any, address: Any, kind: Any) -> Any:
    """The pointer to a value of an LLVM type."""
    return builder.inttoptr(address, kind.as_pointer())


def read(builder: Any, address: Any) -> Any:
    """LANES fp32."""
    return builder.load(address_of(builder, address, FLOATS), align=4)


def write(builder: Any, address: Any, value: Any) -> None:
    """A vector of any length."""
    builder.store(value, address_of(builder, address, value.type), align=4)


def read_parts(builder: Any, dtype: str, address: Any, parts: int, mask: Any = None) -> list[Any]:
    """Vectors of numbers of a dtype, as fp32: several, or one with a mask.

    What the mask hides is zero, and is not read. Pairs of bf16 come as :func:`place` says: numbers
    lie two in a word there, and two vectors of them are got by one instruction each.
    """
    if dtype == "bf16" and parts > 1:
        high, found = _whole(-(1 << 16)), []
        for part in range(0, parts, 2):
            words = _load(builder, builder.add(address, ir.IntType(64)(part * LANES * 2)), _I32)
            both = builder.shl(words, _whole(16)), builder.and_(words, high)
            found += [builder.bitcast(each, FLOATS) for each in both]
        return found
    element = {"fp32": _FLOAT, "fp16": ir.HalfType(), "bf16": _I16}[dtype]
    step = LANES * (4 if dtype == "fp32" else 2)
    if mask is None:
        stored = [
            _load(builder, builder.add(address, ir.IntType(64)(part * step)), element)
            for part in range(parts)
        ]
    else:
        stored = [_load_masked(builder, address, element, mask)]
    return [_widened(builder, each) for each in stored]


def _load(builder: Any, address: Any, element: Any) -> Any:
    align = 2 if element in (ir.HalfType(), _I16) else 4
    return builder.load(address_of(builder, address, ir.VectorType(element, LANES)), align=align)


def _load_masked(builder: Any, address: Any, element: Any, mask: Any) -> Any:
    kind = ir.VectorType(element, LANES)
    name, align = {_FLOAT: ("f32", 4), ir.HalfType(): ("f16", 2), _I16: ("i16", 2)}[element]
    pointer = address_of(builder, address, kind)
    full = f"llvm.masked.load.v{LANES}{name}.p0"
    signature = ir.FunctionType(kind, [pointer.type, _I32, mask.type, kind])
    function = builder.module.globals.get(full) or ir.Function(builder.module, signature, full)
    return builder.call(function, [pointer, _I32(align), mask, ir.Constant(kind, None)])


def _widened(builder: Any, value: Any) -> Any:
    if value.type.element == _FLOAT:
        return value
    if value.type.element == ir.HalfType():
        return builder.fpext(value, FLOATS)
    return builder.bitcast(builder.shl(builder.zext(value, _INTS), _whole(16)), FLOATS)


def prefetch_line(builder: Any, address: Any) -> None:
    """Ask for the cache line of an address, which need not be valid, for the second level."""
    pointer, number = _I8.as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    call = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    builder.call(call, [builder.inttoptr(address, pointer), _I32(0), _I32(2), _I32(1)])


def first_lanes(builder: Any, count: Any) -> Any:
    """The mask of the first ``count`` lanes."""
    numbers = ir.Constant(_INTS, list(range(LANES)))
    return builder.icmp_signed("<", numbers, spread(builder, builder.trunc(count, _I32)))


def multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """``a * b + total``, in one instruction where the processor has it."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))


def sums(builder: Any, vectors: list[Any]) -> Any:
    """The vector whose lane ``i`` is the sum of the lanes of ``vectors[i]``, of LANES vectors."""
    bits = LANES.bit_length() - 1
    order = [int(f"{lane:0{bits}b}"[::-1], 2) for lane in range(LANES)]
    level, span = [vectors[lane] for lane in order], LANES // 2
    while span:
        kept = [lane if not lane & span else lane + LANES for lane in range(LANES)]
        moved = [lane + span if not lane & span else lane - span + LANES for lane in range(LANES)]
        # One half of each vector stays where it is, which costs less than to move both.
        level = [
            builder.fadd(
                *(
                    builder.shuffle_vector(a, b, ir.Constant(_INTS, lanes))
                    for lanes in (kept, moved)
                )
            )
            for a, b in zip(level[::2], level[1::2], strict=True)
        ]
        span //= 2
    return level[0]


def place_of(dtype: str) -> Callable[..., Any]:
    """Where a number of a row stands among those that :func:`read_parts` reads of it."""

    @jit
    def place(number: int, dim: int) -> int:
        block = number & (-2 * LANES)
        if dtype != "bf16" or block + 2 * LANES > dim:
            return number
        return block + (number & 1) * LANES + ((number - block) >> 1)

    return place


@operation(VECTOR, types.float32)
def splat(builder: Any, value: Any) -> Any:
    """A number in all lanes."""
    return spread(builder, value)


@operation(VECTOR, types.int64)
def load(builder: Any, address: Any) -> Any:
    """LANES fp32 from an address."""
    return read(builder, address)


@operation(types.float32, VECTOR)
def first_lane(builder: Any, value: Any) -> Any:
    """The number in lane 0."""
    return builder.extract_element(value, _I32(0))


@operation(types.void, types.int64, VECTOR)
def store(builder: Any, address: Any, value: Any) -> None:
    """LANES fp32 to an address."""
    write(builder, address, value)


@operation(VECTOR, VECTOR, VECTOR)
def plus(builder: Any, a: Any, b: Any) -> Any:
    """``a + b``."""
    return builder.fadd(a, b)


@operation(VECTOR, VECTOR, VECTOR)
def minus(builder: Any, a: Any, b: Any) -> Any:
    """``a - b``."""
    return builder.fsub(a, b)


@operation(VECTOR, VECTOR, VECTOR)
def over(builder: Any, a: Any, b: Any) -> Any:
    """``a / b``."""
    return builder.fdiv(a, b)


@operation(VECTOR, VECTOR, VECTOR)
def times(builder: Any, a: Any, b: Any) -> Any:
    """``a * b``."""
    return builder.fmul(a, b)


@operation(VECTOR, VECTOR, VECTOR)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The greater of each pair; ``b`` where one is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b, flags=_EXACT), a, b)


@operation(VECTOR, VECTOR)
def exp2(builder: Any, x: Any) -> Any:
    """2 to a power of at most 127, within 2 units in the last place; 0 below -126, NaN stays NaN."""
    # Adding 1.5 * 2**23 rounds to an integer, which then stands in the lowest bits.
    shifted = builder.fadd(x, constant(_ROUND), flags=_EXACT)
    fraction = builder.fsub(x, builder.fsub(shifted, constant(_ROUND), flags=_EXACT), flags=_EXACT)
    power = constant(_EXP2[-1])
    for factor in _EXP2[-2::-1]:
        power = multiply_add(builder, power, fraction, constant(factor))
    exponent = builder.shl(builder.bitcast(shifted, _INTS), _whole(23))
    result = builder.bitcast(builder.add(builder.bitcast(power, _INTS), exponent), FLOATS)
    small = builder.fcmp_ordered("<", x, constant(-126.0), flags=_EXACT)
    result = builder.select(small, constant(0.0), result)
    return builder.select(builder.fcmp_unordered("uno", x, x, flags=_EXACT), x, result)


@operation(types.float32, VECTOR)
def highest(builder: Any, value: Any) -> Any:
    """The greatest lane; any NaN may be lost."""
    span = LANES // 2
    while span:
        lanes = [(lane + span) % LANES for lane in range(LANES)]
        other = builder.shuffle_vector(
            value, ir.Constant(FLOATS, ir.Undefined), ir.Constant(_INTS, lanes)
        )
        value = builder.select(builder.fcmp_ordered(">", value, other, flags=_EXACT), value, other)
        span //= 2
    return builder.extract_element(value, _I32(0))


@operation(types.float32, VECTOR)
def total(builder: Any, value: Any) -> Any:
    """The sum of the lanes."""
    span = LANES // 2
    while span:
        lanes = [(lane + span) % LANES for lane in range(LANES)]
        value = builder.fadd(
            value,
            builder.shuffle_vector(
                value, ir.Constant(FLOATS, ir.Undefined), ir.Constant(_INTS, lanes)
            ),
        )
        span //= 2
    return builder.extract_element(value, _I32(0))


@operation(VECTOR, VECTOR, types.int64, types.int64)
def between(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """Lanes from ``low`` and below ``high`` as they are, -inf in the others."""
    numbers = ir.Constant(_INTS, list(range(LANES)))
    low, high = (spread(builder, builder.trunc(edge, _I32)) for edge in (low, high))
    inside = builder.and_(
        builder.icmp_signed(">=", numbers, low), builder.icmp_signed("<", numbers, high)
    )
    return builder.select(inside, value, constant(-math.inf))
