"""Rotary positions of queries and keys: one pass over both, straight from the table of angles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.cpu.compiled.storage import STORAGES, next_chunk, word


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for queries and keys of a dtype.

    Words: counter, q and its strides by token and head, its heads, q rotated (contiguous); the same
    five of k; positions (int64), the table (positions, rotary; fp32), its positions, rotary, head
    dimension, tokens, tokens in a chunk, 1 for pairs that are neighbours (gptj), and what is not 0
    afterwards if a position lay outside of the table. Strides count elements. Products are in fp32
    and rounded once.
    """
    nbytes, load, store = STORAGES[dtype]
    load_angle, fail = STORAGES["fp32"].load, STORAGES["fp32"].store

    def turn(x: int, y: int, angles: int, half: int, size: int, near: int) -> None:
        if near:
            for pair in range(half):
                cos, sin = load_angle(angles, pair), load_angle(angles, pair + half)
                a, b = load(x, 2 * pair), load(x, 2 * pair + 1)
                store(y, 2 * pair, a * cos - b * sin)
                store(y, 2 * pair + 1, b * cos + a * sin)
        else:
            for pair in range(half):
                cos, sin = load_angle(angles, pair), load_angle(angles, pair + half)
                a, b = load(x, pair), load(x, pair + half)
                store(y, pair, a * cos - b * sin)
                store(y, pair + half, b * cos + a * sin)
        for index in range(2 * half, size):
            store(y, index, load(x, index))

    from numba import njit

    turn = njit(inline="always")(turn)

    def heads(
        words: int, at: int, token: int, angles: int, half: int, size: int, near: int
    ) -> None:
        x = word(words, at) + token * word(words, at + 1) * nbytes
        step, count, y = word(words, at + 2), word(words, at + 3), word(words, at + 4)
        for head in range(count):
            target = y + (token * count + head) * size * nbytes
            turn(x + head * step * nbytes, target, angles, half, size, near)

    heads = njit(inline="always")(heads)

    def rope(words: int) -> None:
        positions, table, limit = word(words, 11), word(words, 12), word(words, 13)
        rotary, size, tokens = word(words, 14), word(words, 15), word(words, 16)
        chunk, near = word(words, 17), word(words, 18)
        while True:
            start = next_chunk(words) * chunk
            if start >= tokens:
                return
            for token in range(start, min(start + chunk, tokens)):
                position = word(positions, token)
                if position < 0 or position >= limit:
                    fail(words, 2 * 19, np.float32(1))
                    return
                angles = table + position * rotary * 4
                heads(words, 1, token, angles, rotary // 2, size, near)
                heads(words, 6, token, angles, rotary // 2, size, near)

    return rope
