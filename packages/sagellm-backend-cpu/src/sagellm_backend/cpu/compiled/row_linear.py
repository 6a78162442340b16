"""One row times a weight: the weight is read once, at the speed of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.cpu.compiled.storage import STORAGES, next_chunk, prefetch, word

AHEAD = 8192
"""Bytes between what is read and what is asked for. Rows of a weight are short, and the processor's
own prefetcher starts anew at each; measured from 1 to 8 KiB, farther was faster."""

_LINE = 64


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for weights of a dtype.

    Words: counter, x (fp32), weight (outputs, inputs), bias or 0, y (outputs), inputs, outputs,
    outputs in a chunk. All of ``dtype`` but x, and contiguous; sums are in fp32.
    """
    nbytes, load, store = STORAGES[dtype]
    load_input = STORAGES["fp32"].load
    line = _LINE // nbytes

    def row_linear(words: int) -> None:
        x, weight, bias, y = word(words, 1), word(words, 2), word(words, 3), word(words, 4)
        inputs, outputs, size = word(words, 5), word(words, 6), word(words, 7)
        if inputs <= 0:
            return
        while True:
            first = next_chunk(words) * size
            if first >= outputs:
                return
            for output in range(first, min(first + size, outputs)):
                start = output * inputs
                for index in range(0, inputs, line):
                    prefetch(weight + (start + index) * nbytes + AHEAD)
                total = np.float32(0)
                for index in range(inputs):
                    total += load_input(x, index) * load(weight, start + index)
                if bias:
                    total += load(bias, output)
                store(y, output, total)

    return row_linear
