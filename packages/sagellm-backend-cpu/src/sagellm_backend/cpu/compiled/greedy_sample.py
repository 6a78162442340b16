"""The place of the highest number of each row: a row is read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from sagellm_backend.cpu.compiled.storage import STORAGES, next_chunk, set_word, word

_BLOCK = 256
_I32 = ir.IntType(32)


@intrinsic
def _order(context: Any, value: Any) -> Any:
    """An int32 that is greater the greater an fp32 is, and the same for both zeros.

    Integers have no NaN, so that LLVM may take their maximum by vectors.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I32)
        size = builder.and_(bits, _I32(0x7FFFFFFF))
        negative = builder.icmp_signed("<", bits, _I32(0))
        return builder.select(negative, builder.neg(size), size)

    return types.int32(types.float32), generate


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for logits of a dtype.

    Words: counter, logits (rows, width), ids (int64), rows, width. All is contiguous. Among equals
    the first is taken; a row with NaN has any place.
    """
    nbytes, load, _ = STORAGES[dtype]

    def highest(logits: int, first: int, last: int) -> int:
        found = _order(load(logits, first))
        for index in range(first + 1, last):
            found = max(found, _order(load(logits, index)))
        return found

    highest = njit(inline="always")(highest)

    def greedy_sample(words: int) -> None:
        logits, ids, rows, width = word(words, 1), word(words, 2), word(words, 3), word(words, 4)
        while True:
            row = next_chunk(words)
            if row >= rows:
                return
            numbers, place = logits + row * width * nbytes, 0
            best = _order(load(numbers, 0))
            for first in range(0, width, _BLOCK):
                found = highest(numbers, first, min(first + _BLOCK, width))
                if found > best:
                    best, place = found, first
            while _order(load(numbers, place)) != best:
                place += 1
            set_word(ids, row, place)

    return greedy_sample
