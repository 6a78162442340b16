"""RMS norm of rows, after adding a residual or not: each row is read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.cpu.compiled.storage import STORAGES, next_chunk, square_root, word


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for rows of a dtype.

    Words: counter, x (rows, width), residual or 0, weight (width), y, total, rows, width, rows in a
    chunk, the bits of eps in fp32. Sums are in fp32. Half types are normalised, rounded, and then
    scaled, which is the order that models train with. Without a residual nothing is written to
    ``total``.
    """
    nbytes, load, store = STORAGES[dtype]
    load_eps = STORAGES["fp32"].load
    half = dtype != "fp32"

    def add(x: int, residual: int, total: int, width: int) -> None:
        for index in range(width):
            store(total, index, load(x, index) + load(residual, index))

    def scale(x: int, weight: int, y: int, width: int, eps: float) -> None:
        squares = np.float32(0)
        for index in range(width):
            squares += load(x, index) * load(x, index)
        factor = np.float32(1) / square_root(squares / np.float32(width) + eps)
        if half:
            for index in range(width):
                store(y, index, load(x, index) * factor)
            for index in range(width):
                store(y, index, load(y, index) * load(weight, index))
        else:
            for index in range(width):
                store(y, index, load(x, index) * factor * load(weight, index))

    from numba import njit

    add, scale = njit(inline="always")(add), njit(inline="always")(scale)

    def rms_norm(words: int) -> None:
        x, residual, weight = word(words, 1), word(words, 2), word(words, 3)
        y, total = word(words, 4), word(words, 5)
        rows, width, size = word(words, 6), word(words, 7), word(words, 8)
        eps = load_eps(words, 18)  # the low half of word 9
        while True:
            first = next_chunk(words) * size
            if first >= rows:
                return
            for row in range(first, min(first + size, rows)):
                start = row * width * nbytes
                source = x + start
                if residual:
                    add(source, residual + start, total + start, width)
                    source = total + start
                scale(source, weight, y + start, width, eps)

    return rms_norm
