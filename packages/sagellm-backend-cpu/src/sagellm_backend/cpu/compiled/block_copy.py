"""Blocks from one place to another, each line of memory read once and written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sagellm_backend.cpu.compiled.storage import mover, next_chunk, word

_AHEAD = 512
"""Bytes between a store and the line that is asked for: stores wait for memory (benchmarks/kv.py)."""


@intrinsic
def _fence(context: Any) -> Any:
    """Let what was stored past the caches be seen before anything that is stored later."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.module.declare_intrinsic("llvm.x86.sse.sfence", (), kind), [])

    return types.void(), generate


@intrinsic
def _prefetch_to_write(context: Any, address: Any) -> Any:
    """Ask for the cache line of an address, which is to be written soon; it need not be valid."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        call = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(call, [builder.inttoptr(args[0], pointer), number(1), number(3), number(1)])

    return types.void(types.int64), generate


def build(dtype: str) -> Callable[..., Any]:
    """The kernel, which moves bytes of any dtype.

    Words: counter, source, target, bytes between rows of the source, and of the target, source
    ids, target ids (int64), ids, rows, bytes of a block, blocks in a chunk, whether to store past
    the caches. Then blocks of the target begin at multiples of 64 and are as long. A block is
    copied in every row; blocks of a row lie one behind the other. Sources and targets do not
    overlap.
    """
    del dtype
    move_byte, move_line = mover(1), mover(64)
    move_line_past = mover(64, past_caches=True)

    def block_copy(words: int) -> None:
        source, target = word(words, 1), word(words, 2)
        source_row, target_row = word(words, 3), word(words, 4)
        source_ids, target_ids, count = word(words, 5), word(words, 6), word(words, 7)
        rows, nbytes = word(words, 8), word(words, 9)
        size, past_caches = word(words, 10), word(words, 11)
        if count <= 0:
            return
        whole = nbytes & ~63
        while True:
            first = next_chunk(words) * size
            if first >= rows * count:
                break
            for item in range(first, min(first + size, rows * count)):
                row, place = item // count, item % count
                read = source + row * source_row + word(source_ids, place) * nbytes
                write = target + row * target_row + word(target_ids, place) * nbytes
                if past_caches:
                    for at in range(0, whole, 64):
                        move_line_past(write + at, read + at)
                else:
                    # Lines behind the block may be another thread's to write, and are not asked for.
                    early = max(whole - _AHEAD, 0)
                    for at in range(0, early, 64):
                        _prefetch_to_write(write + at + _AHEAD)
                        move_line(write + at, read + at)
                    for at in range(early, whole, 64):
                        move_line(write + at, read + at)
                for at in range(whole, nbytes):
                    move_byte(write + at, read + at)
        if past_caches:
            _fence()

    return block_copy
