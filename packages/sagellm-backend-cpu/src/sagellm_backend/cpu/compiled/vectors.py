"""Vectors of fp32 in compiled code: what a kernel written in Python does with them.

Importing this imports Numba. Addresses are int64 and are not checked. Everything here is for use
inside of compiled code only.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from sagellm_backend.cpu.compiled.storage import FAST
from sagellm_backend.cpu.compiled.vector_code import (
    FLOATS,
    INTS,
    LANES,
    constant,
    multiply_add,
    read,
    spread,
    whole,
    write,
)

_I32 = ir.IntType(32)

_EXACT = ("nsz",)  # any flag of its own keeps Numba from letting LLVM reorder an instruction
_ROUND = 1.5 * 2**23
_EXP2 = [math.log(2) ** power / math.factorial(power) for power in range(8)]


CALLED: set[str] = set()
"""Names of functions that are not to be copied to where they are called."""


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


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, of which no copies are made where it is called: it is compiled once, and so sooner."""
    CALLED.add(function.__name__)
    return jit(function)


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
    exponent = builder.shl(builder.bitcast(shifted, INTS), whole(23))
    result = builder.bitcast(builder.add(builder.bitcast(power, INTS), exponent), FLOATS)
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
            value, ir.Constant(FLOATS, ir.Undefined), ir.Constant(INTS, lanes)
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
                value, ir.Constant(FLOATS, ir.Undefined), ir.Constant(INTS, lanes)
            ),
        )
        span //= 2
    return builder.extract_element(value, _I32(0))


@operation(VECTOR, VECTOR, types.int64, types.int64)
def between(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """Lanes from ``low`` and below ``high`` as they are, -inf in the others."""
    numbers = ir.Constant(INTS, list(range(LANES)))
    low, high = (spread(builder, builder.trunc(edge, _I32)) for edge in (low, high))
    inside = builder.and_(
        builder.icmp_signed(">=", numbers, low), builder.icmp_signed("<", numbers, high)
    )
    return builder.select(inside, value, constant(-math.inf))
