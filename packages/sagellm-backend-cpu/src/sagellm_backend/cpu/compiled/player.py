"""Many launches of kernels in turn, without going back to Python between them.

All threads stay inside: what one of them has written, those of the next launch see, since each waits
for all the others before it goes on. A sense-counting barrier over one counter (Mellor-Crummey and
Scott, 1991, section 3.1) that only ever rises within a run. When a kernel has found its arguments at
fault, which it says in its last word, no further one is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sagellm_backend.cpu.compiled import player_words as w
from sagellm_backend.cpu.compiled.storage import next_chunk, set_word, word
from sagellm_backend.cpu.compiled.vectors import jit

_I64 = ir.IntType(64)
_PATIENCE = 4096  # looks at a counter, of some 40 ns each, before another thread gets the processor


@intrinsic
def call(context: Any, function: Any, argument: Any) -> Any:
    """Call a C function of one int64 by its address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [args[1]])

    return types.void(types.int64, types.int64), generate


@intrinsic
def ask(context: Any, function: Any) -> Any:
    """What a C function of no arguments gives, an int."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(args[0], kind), []), _I64)

    return types.int64(types.int64), generate


@intrinsic
def arrive(context: Any, counter: Any) -> Any:
    """Count an int64 up, and see all that was written before others counted it up: its old value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, _I64(1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def look(context: Any, counter: Any) -> Any:
    """An int64 as it is now, after a moment's rest; with all that was written before it was counted up."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        name = "llvm.x86.sse2.pause"
        rest = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(rest, [])
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "acquire", align=8)

    return types.int64(types.int64), generate


@jit
def wait(words: int, wanted: int) -> None:
    """Until so many have arrived."""
    left = _PATIENCE
    while look(words + 8 * w.ARRIVED) < wanted:
        left -= 1
        if not left:
            left = _PATIENCE
            if word(words, w.GIVE_WAY):
                ask(word(words, w.GIVE_WAY))


@jit
def reset(launch: int, argument: int) -> None:
    """Make the counters of a launch what they were."""
    set_word(argument, 0, 0)
    set_word(argument, 1, word(launch, w.SECOND))


def build(dtype: str) -> Callable[..., Any]:
    """The player of launches whatever their dtypes; ``player_words`` has its words."""
    del dtype

    def player(words: int) -> None:
        number, team = next_chunk(words), 1
        if word(words, w.TEAM_SIZE):
            team = ask(word(words, w.TEAM_SIZE))
        launch, wanted = word(words, w.TABLE), 0
        for _ in range(word(words, w.COUNT)):
            argument = word(launch, w.ARGUMENT)
            if number < word(launch, w.CHUNKS) and not word(words, w.STOPPED):
                call(word(launch, w.FUNCTION), argument)
                if word(argument, word(launch, w.LAST)) != word(launch, w.SOUND):
                    set_word(words, w.STOPPED, 1)
            if word(launch, w.ALONE):
                if number == 0:
                    reset(launch, argument)
            else:
                wanted += team
                if arrive(words + 8 * w.ARRIVED) == wanted - 1:
                    reset(launch, argument)  # the last one is the only one that still looks at it
                wait(words, wanted)
            launch += 8 * w.COLUMNS

    return player
