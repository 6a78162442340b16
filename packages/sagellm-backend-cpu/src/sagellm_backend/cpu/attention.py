"""Attention over a paged cache by a kernel that reads keys and values once, where they lie."""

from __future__ import annotations

import ctypes
import math
import struct
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cpu import capturing, matrices
from sagellm_backend.cpu.capturing import Change
from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import addressable, kernels_of
from sagellm_backend.torch_support import attention as plain

KERNELS = kernels_of("paged_attention")
MOST_QUERIES = {torch.float32: 256, torch.float16: 32, torch.bfloat16: 24}
"""By dtype, up to about how many new tokens of a sequence the kernel is faster than torch.

It saves the copy of the keys that torch gathers first; torch multiplies many queries faster.
Reckoned from the rates of both (benchmarks/README.md), that of fp16 estimated."""

PLAN = "cpu.paged_plan"
_QUERIES = "cpu.paged_queries"
_MOST_TASKS, _LEAST_KEYS = 64, 512
_MOST_ROWS = 16
_SPAN_BYTES = 4096
# What a thread takes at once, whatever the number of threads: so many keys of a sequence, for so
# many rows of queries, of kv heads whose keys of one token fill a page.
_LOG2E = math.log2(math.e)
_Words = ctypes.c_int64 * w.WORDS
_packed = struct.Struct(f"{w.WORDS}q").pack


class Plan(NamedTuple):
    """The work of a step, cut into tasks; the same for all of its layers."""

    tasks: np.ndarray[Any, Any]
    table: np.ndarray[Any, Any]
    addresses: tuple[int, int]
    size: int
    queries: int
    slots: int


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention, as the operation's table says.

    A paged cache is read by the kernel, and by plain torch where that is not to be had, does not
    fit the tensors, or is slower. The same bits whatever the number of threads.
    """
    options: dict[str, Any] = {
        "scale": scale,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "sinks": sinks,
    }
    if metadata.block_table is None or not _fits(q, k, v):
        return _plain(q, k, v, metadata, **options)
    plain.check(q, k, v, metadata, **options)
    function = KERNELS[q.dtype].function()
    if function is None or _mean_queries(metadata) > MOST_QUERIES[q.dtype]:
        return _plain(q, k, v, metadata, **options)
    share = q.shape[1] // k.shape[2]
    cut = max(1, _MOST_ROWS // share), causal, window
    plan = _plan(metadata, *cut)
    out, sizes, memory = _run(function, q, k, v, plan, scale, causal, window, softcap, sinks)
    if capturing.recording is not None:
        _recorded(metadata, cut, sizes, (plan, memory, sinks))
    return out


def _plain(*args: Any, **options: Any) -> Tensor:
    result: Tensor = capturing.call(plain.attention, *args, **options)
    return result


def _fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if not addressable(q, k, v) or q.dtype not in KERNELS:
        return False
    if not (q.dim() == 3 and k.dim() == v.dim() == 4):
        return False
    return q.stride(2) == k.stride(3) == v.stride(3) == 1


def _mean_queries(metadata: AttentionMetadata) -> float:
    """New tokens of the mean key: what both ways take is in proportion to keys, and to keys x these."""
    if metadata.max_query_len == 1:
        return 1.0
    found: float | None = metadata.native.get(_QUERIES)
    if found is None:
        kv = metadata.kv_lens.astype(np.int64)
        found = metadata.native[_QUERIES] = float((kv * metadata.query_lens).sum() / kv.sum())
    return found


def _plan(metadata: AttentionMetadata, queries: int, causal: bool, window: int | None) -> Plan:
    key = (PLAN, queries, causal, window)
    plan: Plan | None = metadata.native.get(key)
    if plan is None:
        plan = metadata.native[key] = _make_plan(metadata, queries, causal, window)
    return plan


def _make_plan(metadata: AttentionMetadata, most: int, causal: bool, window: int | None) -> Plan:
    query, kv = metadata.query_lens.astype(np.int64), metadata.kv_lens.astype(np.int64)
    tiles = -(-query // most)
    sequence = np.repeat(np.arange(len(query)), tiles)
    start = most * _counted(tiles)
    queries = np.minimum(most, query[sequence] - start)
    position = kv[sequence] - query[sequence] + start
    end = position + queries if causal else kv[sequence]
    first = np.zeros_like(end) if window is None else np.maximum(0, position - window + 1)
    size = max(_LEAST_KEYS, -(-int((end - first).sum()) // (_MOST_TASKS * w.KEYS)) * w.KEYS)
    splits = -(-(end - first) // size)
    split = _counted(splits)
    tile = np.repeat(np.arange(len(splits)), splits)
    slot = np.concatenate(([0], np.cumsum(np.where(splits > 1, splits, 0))))
    tasks = np.empty((len(tile), w.COLUMNS), np.int32)
    tasks[:, w.SEQUENCE] = sequence[tile]
    tasks[:, w.QUERY] = (metadata.cu_query[:-1][sequence] + start)[tile]
    tasks[:, w.QUERIES] = queries[tile]
    tasks[:, w.POSITION] = position[tile]
    tasks[:, w.FIRST_KEY] = first[tile] + split * size
    tasks[:, w.END_KEY] = np.minimum(first[tile] + (split + 1) * size, end[tile])
    tasks[:, w.SLOT] = slot[:-1][tile]
    tasks[:, w.SPLIT] = split
    tasks[:, w.SPLITS] = splits[tile]
    assert metadata.block_table is not None
    table = np.ascontiguousarray(metadata.block_table)
    addresses = tasks.ctypes.data, table.ctypes.data
    return Plan(tasks, table, addresses, len(tasks), int(queries.max()), int(slot[-1]))


def _counted(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0 up to each count, one after the other."""
    last = np.cumsum(counts)
    found: np.ndarray[Any, Any] = np.arange(last[-1]) - np.repeat(last - counts, counts)
    return found


def _rows(count: int, least: int) -> int:
    """Rows that tiles of 8, 4, 2 and 1 take for so many, where no tile has fewer than ``least``."""
    rest = count % w.TILE
    return count - rest + max((0, 1, 2, 4, 4, 8, 8, 8)[rest], least if rest else 0)


@lru_cache(64)
def _factors(scale: float, softcap: float | None) -> tuple[int, int]:
    """The bits of the scale and of the cap, of powers of two."""
    scaled = scale * _LOG2E if softcap is None else scale / softcap * 2 * _LOG2E
    first, second = struct.unpack("<ii", struct.pack("<ff", scaled, (softcap or 0.0) * _LOG2E))
    return first, second


def _run(
    function: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, tuple[int, int], Any]:
    """The result; head groups, and bytes of a split's partial results; memory of these results."""
    _, heads, dim = q.shape
    _, block, kv_heads, _ = k.shape
    sinks = None if sinks is None else sinks.contiguous()
    nbytes = k.element_size()
    rows = _rows(plan.queries * (heads // kv_heads), 2 if q.dtype is torch.bfloat16 else 1)
    span = min(kv_heads, w.SPAN_HEADS, max(1, _SPAN_BYTES // (dim * nbytes)))
    groups = -(-kv_heads // span)
    tasks, slots = plan.size * groups, plan.slots
    matrix = _by_matrix(q.dtype, block, dim)
    each = w.scratch_bytes(rows, span, dim, matrix)
    scratch = torch.empty(torch.get_num_threads() * each, dtype=torch.uint8)
    partial_bytes = 4 * kv_heads * rows * (dim + 2)
    room, arrived, memory = _splits(slots, partial_bytes, groups) if slots else (0, 0, None)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    q_token, q_head, _ = q.stride()
    k_block, k_slot, k_head, _ = k.stride()
    v_block, v_slot, v_head, _ = v.stride()
    # fmt: off
    words = _Words.from_buffer_copy(_packed(  # in a third of the time that _Words(...) takes
        0, 0, tasks, plan.addresses[0], groups, span, heads, kv_heads, dim, rows,
        q.data_ptr(), q_token, q_head, out.data_ptr(),
        k.data_ptr(), k_block * nbytes, k_slot * nbytes, k_head * nbytes,
        v.data_ptr(), v_block * nbytes, v_slot * nbytes, v_head * nbytes,
        plan.addresses[1], plan.table.shape[1], block, causal, window or 0,
        *_factors(scale, softcap), 0 if sinks is None else sinks.data_ptr(),
        scratch.data_ptr(), each, room, partial_bytes, arrived, matrix,
    ))
    # fmt: on
    team.run(function, words, tasks)
    return out, (groups, partial_bytes), memory


def _by_matrix(dtype: torch.dtype, block: int, dim: int) -> bool:
    """Whether the processor's matrix unit is for this: blocks of whole matrices of bf16."""
    fits = dtype is torch.bfloat16 and block % 16 == 0 and dim % 32 == 0
    return fits and matrices.available(matrices.BF16)


def _splits(slots: int, partial_bytes: int, groups: int) -> tuple[int, int, Any]:
    """Addresses of memory for partial results and for counters of 0, and that memory."""
    memory = np.empty(slots * partial_bytes, np.uint8), np.zeros(slots * groups, np.int32)
    return memory[0].ctypes.data, memory[1].ctypes.data, memory


def _recorded(metadata: AttentionMetadata, cut: Any, sizes: tuple[int, int], memory: Any) -> None:
    """Tell the capture what other lengths and blocks change in the launch that was just recorded."""
    found = capturing.mine()
    if found is not None:
        found.follow(metadata, (cut, sizes), partial(_change, cut, sizes), memory)


def _change(cut: Any, sizes: tuple[int, int], metadata: AttentionMetadata) -> Change:
    plan, (groups, partial_bytes) = _plan(metadata, *cut), sizes
    tasks = plan.size * groups
    room, arrived, memory = 0, 0, None
    if plan.slots:
        room, arrived, memory = _splits(plan.slots, partial_bytes, groups)
    words = {
        w.TASKS: tasks,
        w.TASK_TABLE: plan.addresses[0],
        w.BLOCKS: plan.addresses[1],
        w.BLOCK_ROW: plan.table.shape[1],
        w.PARTIAL: room,
        w.ARRIVED: arrived,
    }
    return Change(words, tasks, (plan, memory))
