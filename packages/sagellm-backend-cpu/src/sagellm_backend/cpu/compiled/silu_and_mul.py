"""SwiGLU of rows: the gate and what it lets through are read once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from sagellm_backend.cpu.compiled.storage import STORAGES, next_chunk, word

_LOG2E = np.float32(math.log2(math.e))
_LOW, _HIGH, _INFINITE = np.float32(-126), np.float32(127), np.float32(math.inf)
# exp2 of a half and less by its series, within 2 units in the last place.
_A, _B, _C, _D, _E, _F, _G = (
    np.float32(math.log(2) ** power / math.factorial(power)) for power in range(1, 8)
)
_ONE = np.float32(1)


@intrinsic
def _nearest(context: Any, value: Any) -> Any:
    """The integer that is nearest to an fp32, as int32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rounded = builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()])
        return builder.fptosi(builder.call(rounded, [args[0]]), ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _power(context: Any, exponent: Any) -> Any:
    """2 to the power of an int32 from -126 to 127."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        biased = builder.add(args[0], ir.IntType(32)(127))
        return builder.bitcast(builder.shl(biased, ir.IntType(32)(23)), ir.FloatType())

    return types.float32(types.int32), generate


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for rows of a dtype.

    Words: counter, x (rows, 2 * width), y (rows, width), rows, width, rows in a chunk. All is
    contiguous; what is in between is in fp32, and rounded once.
    """
    nbytes, load, store = STORAGES[dtype]

    def row(gate: int, up: int, y: int, width: int) -> None:
        for index in range(width):
            x = load(gate, index)
            power = -x * _LOG2E
            # NaN becomes the lower end, and x itself brings it back: max() promises nothing of it.
            near = power if power > _LOW else _LOW  # noqa: FURB136
            near = near if near < _HIGH else _HIGH  # noqa: FURB136
            whole = _nearest(near)
            r = near - np.float32(whole)
            series = _ONE + r * (_A + r * (_B + r * (_C + r * (_D + r * (_E + r * (_F + r * _G))))))
            exp = series * _power(whole)
            exp = exp if power <= _HIGH else _INFINITE
            store(y, index, x / (_ONE + exp) * load(up, index))

    row = njit(inline="always")(row)

    def silu_and_mul(words: int) -> None:
        x, y, rows = word(words, 1), word(words, 2), word(words, 3)
        width, size = word(words, 4), word(words, 5)
        step = width * nbytes
        while True:
            first = next_chunk(words) * size
            if first >= rows:
                return
            for number in range(first, min(first + size, rows)):
                gate = x + 2 * number * step
                row(gate, gate + step, y + number * step, width)

    return silu_and_mul
