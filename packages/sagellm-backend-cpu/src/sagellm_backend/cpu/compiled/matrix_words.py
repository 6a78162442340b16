"""Sizes that the kernels by the matrix unit and their callers agree on."""

from __future__ import annotations

SIDE, LINE = 16, 64
"""Rows of a matrix, and bytes of one of them."""

MATRIX = SIDE * LINE

PAIRED_INPUTS = LINE // 2
"""Numbers of bf16 in a row of a matrix."""

STATE = 2 * LINE
"""What is kept of the matrix unit while a kernel uses it."""

FACTORS = 2 * 8 * SIDE
"""Scales and biases of sixteen outputs in fp64."""

ROW = 24
"""What is kept of a row of x, in words: how many units of digits it has, the first, its least exponent."""

MOST_UNITS = 2
"""Units of digits of a row. One with more is summed up by vectors."""

MOST_INPUTS = 1 << 17
"""So many products of an int8 and a digit of seven bits are less than 2**31."""

MOST_AT_ONCE = 4 * SIDE
"""Rows of bf16 that share a read of the weight."""

LEAST_ROWS, MOST_ROWS, MOST_DIGITS = 8, 128, 96 << 10
"""Rows of x in a block, whose digits are to stay in the second cache: so many numbers at most."""


def scratch_bytes(rows: int, inputs: int) -> int:
    """Memory for a thread, which has to start at a multiple of LINE."""
    matrices = rows * ((inputs + LINE - 1) // LINE + 2)
    return STATE + 2 * FACTORS + (ROW * rows + LINE - 1 & -LINE) + matrices * MATRIX


def bf16_scratch_bytes(rows: int, inputs: int, outputs: int) -> int:
    """The same of the kernel for bf16, with so many outputs in a chunk."""
    groups = -(-min(rows, MOST_AT_ONCE) // SIDE)
    groups = 4 if groups == 3 else groups
    return STATE + LINE * groups * (inputs // 2 + outputs + SIDE)
