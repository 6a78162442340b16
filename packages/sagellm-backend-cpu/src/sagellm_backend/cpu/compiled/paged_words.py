"""The arguments and the memory of the paged kernel: what both of its sides must know."""

from __future__ import annotations

COUNTER, TEAM, TASKS, TASK_TABLE, HEAD_GROUPS, SPAN, HEADS, KV_HEADS, DIM, ROWS = range(10)
"""Counters of tasks and of threads; tasks, the address of their table, and into how many groups of
SPAN kv heads each is cut; the sizes, and the most rows that a task has for one kv head."""

Q, Q_TOKEN, Q_HEAD, OUT = range(10, 14)
"""Addresses of queries and results, and strides of the queries in elements."""

K, K_BLOCK, K_SLOT, K_HEAD, V, V_BLOCK, V_SLOT, V_HEAD = range(14, 22)
"""Addresses of the caches, and strides in bytes."""

BLOCKS, BLOCK_ROW, BLOCK_SIZE, CAUSAL, WINDOW, SCALE, SOFTCAP = range(22, 29)
"""The int32 block table and its row length; a window of 0 is none. In fp32: the scale times
log2(e), and the cap, or 0, and behind it log2(e) times the cap."""

SINKS = 29
"""The address of the heads' sinks, or 0."""

SCRATCH, SCRATCH_BYTES, PARTIAL, PARTIAL_BYTES, ARRIVED = range(30, 35)
"""Memory for each thread; for each slot, which one split of a sequence writes for the last to merge;
and int32 counters of the splits that are done, zeros to begin with."""

MATRIX = 35
"""Whether the matrix unit may be used: of bf16, in blocks of whole matrices."""

WORDS = 36

SEQUENCE, QUERY, QUERIES, POSITION, FIRST_KEY, END_KEY, LENGTH, SLOT, SPLIT, SPLITS = range(10)
"""The int32 columns of a task: the row of the block table; the first query, how many, and the
position of the first; the keys that it reads, and the length of the sequence; the slot of the
first split of these queries, which split this is, and how many there are."""

COLUMNS = 10

KEYS = 64
"""Keys between two looks at the highest score."""

TILE = 8
"""The most rows of queries that share a read."""

SPAN_HEADS = 16
"""The most kv heads in a task."""

LINE = 64
LISTS = 2 * 2 * 8 * KEYS
SCORES = 4 * KEYS
"""Bytes of a row of scores."""

HEAD_SCORES = SCORES * TILE + LINE
"""Bytes of the scores of a kv head, and of the factors of its rows behind them."""

HEADER = LISTS + SPAN_HEADS * HEAD_SCORES
"""Bytes of scratch before the rows: two lists of addresses of keys and values, and scores."""


SIDE = 16
"""Rows of a matrix of the matrix unit."""


def padded(count: int, step: int) -> int:
    """The multiple of ``step`` that is at least ``count``."""
    return -(-count // step) * step


def scratch_bytes(rows: int, heads: int, dim: int, matrix: bool) -> int:
    """Bytes that a thread needs for tasks of so many rows for each of so many kv heads.

    For the matrix unit: its state, the matrices of weights and of sums, and the queries.
    """
    state = 2 * LINE + 8 * padded(dim, LINE // 4)
    plain = HEADER + padded(16 * rows, LINE) + heads * rows * state
    if not matrix:
        return plain
    return plain + 2 * LINE + 4 * LINE * SIDE + 32 * dim + 8 * dim * heads * padded(rows, 4) // 4
