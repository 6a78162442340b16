"""Keys and values of tokens into their slots of a paged cache, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from sagellm_backend.cpu.compiled.storage import mover, next_chunk, set_word, word


def build(dtype: str) -> Callable[..., Any]:
    """The kernel, which moves bytes of any dtype.

    Words: counter, key and its strides by token and head, the cache and its strides by block, slot
    and head; the same seven of value; slots (int64), tokens, heads, bytes of a head, slots in a
    block, slots in all, tokens in a chunk, and what is not 0 afterwards if a slot lay outside of
    the cache: then nothing is written. Strides count bytes. A slot of -1 is passed over.
    """
    del dtype
    move_byte, move_line = mover(1), mover(64)

    def put(words: int, at: int, token: int, slot: int) -> None:
        size, nbytes = word(words, 19), word(words, 18)
        source = word(words, at) + token * word(words, at + 1)
        block = slot // size
        target = word(words, at + 3) + block * word(words, at + 4)
        target += (slot - block * size) * word(words, at + 5)
        for _ in range(word(words, 17)):
            for byte in range(0, nbytes & ~63, 64):
                move_line(target + byte, source + byte)
            for byte in range(nbytes & ~63, nbytes):
                move_byte(target + byte, source + byte)
            source += word(words, at + 2)
            target += word(words, at + 6)

    put = njit(inline="always")(put)

    def kv_write(words: int) -> None:
        slots, tokens, size = word(words, 15), word(words, 16), word(words, 21)
        # Every thread looks at all of them, so that none writes if one is wrong.
        for token in range(tokens):
            slot = word(slots, token)
            if slot < -1 or slot >= word(words, 20):
                set_word(words, 22, 1)
                return
        while True:
            first = next_chunk(words) * size
            if first >= tokens:
                return
            for token in range(first, min(first + size, tokens)):
                slot = word(slots, token)
                if slot >= 0:
                    put(words, 1, token, slot)
                    put(words, 8, token, slot)

    return kv_write
