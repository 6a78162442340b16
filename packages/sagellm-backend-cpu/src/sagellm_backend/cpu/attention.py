"""Attention over a paged cache by a kernel that reads keys and values once, where they lie."""

from __future__ import annotations

import ctypes
import math
import struct
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cpu.compiled import paged_words as w
from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.torch_support import attention as plain

_KERNELS = {
    torch.float32: Kernel("paged_attention", "fp32"),
    torch.float16: Kernel("paged_attention", "fp16"),
    torch.bfloat16: Kernel("paged_attention", "bf16"),
}
_PLAN = "cpu.paged_plan"
_MOST_TASKS, _LEAST_KEYS = 256, 256
_MOST_ROWS = 16
_SPAN_BYTES = 4096
_LOG2E = math.log2(math.e)
_PLAIN = (Tensor, Parameter)
_Words = ctypes.c_int64 * w.WORDS


class Plan(NamedTuple):
    """The work of a step, cut into tasks; the same for all of its layers."""

    tasks: np.ndarray[Any, Any]
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
) -> Tensor:
    """Softmax attention; see the operation's table. Anything but a paged cache is plain torch's."""
    options: dict[str, Any] = {
        "scale": scale,
        "causal": causal,
        "window": window,
        "softcap": softcap,
    }
    if metadata.block_table is None or not _fits(q, k, v):
        return plain.attention(q, k, v, metadata, **options)
    plain.check(q, k, v, metadata, **options)
    function = _KERNELS[q.dtype].function()
    if function is None:
        return plain.attention(q, k, v, metadata, **options)
    share = q.shape[1] // k.shape[2]
    plan = _plan(metadata, max(1, _MOST_ROWS // share), causal, window)
    return _run(function, q, k, v, metadata, plan, scale, causal, window, softcap)


def _fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    for item in (q, k, v):
        if type(item) not in _PLAIN or not item.is_cpu or item.layout is not torch.strided:
            return False
        if item.dtype not in _KERNELS or item.dim() < 3 or item.stride(-1) != 1:
            return False
        if item.requires_grad and torch.is_grad_enabled():
            return False
    return True


def _plan(metadata: AttentionMetadata, queries: int, causal: bool, window: int | None) -> Plan:
    key = (_PLAN, queries, causal, window)
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
    return Plan(tasks, int(queries.max()), int(slot[-1]))


def _counted(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0 up to each count, one after the other."""
    last = np.cumsum(counts)
    found: np.ndarray[Any, Any] = np.arange(last[-1]) - np.repeat(last - counts, counts)
    return found


def _rows(count: int) -> int:
    """Rows that tiles of 8, 4, 2 and 1 take for so many."""
    rest = count % w.TILE
    return count - rest + (0, 1, 2, 4, 4, 8, 8, 8)[rest]


def _bits(number: float) -> int:
    return int.from_bytes(struct.pack("<f", number), "little")


def _run(
    function: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    metadata: AttentionMetadata,
    plan: Plan,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    _, heads, dim = q.shape
    kv_heads, nbytes = k.shape[2], k.element_size()
    table = metadata.block_table
    assert table is not None
    rows = _rows(plan.queries * (heads // kv_heads))
    span = min(kv_heads, max(1, _SPAN_BYTES // (dim * nbytes)))
    groups = -(-kv_heads // span)
    tasks = len(plan.tasks) * groups
    threads = min(torch.get_num_threads(), tasks)
    each = w.scratch_bytes(rows, span, dim)
    scratch = torch.empty(threads * each, dtype=torch.uint8)
    partial_bytes = 4 * kv_heads * rows * (dim + 2)
    partial = torch.empty(plan.slots * partial_bytes, dtype=torch.uint8)
    arrived = torch.zeros(plan.slots * groups, dtype=torch.int32)
    out = q.new_empty(q.shape)
    scaled = scale * _LOG2E if softcap is None else scale / softcap * 2 * _LOG2E
    words = _Words(
        *(0, 0, tasks, plan.tasks.ctypes.data, groups, span, heads, kv_heads, dim, rows),
        *(q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr()),
        *(k.data_ptr(), *(stride * nbytes for stride in k.stride()[:3])),
        *(v.data_ptr(), *(stride * nbytes for stride in v.stride()[:3])),
        *(table.ctypes.data, table.strides[0] // 4, k.shape[1], causal, window or 0),
        *(_bits(scaled), _bits((softcap or 0.0) * _LOG2E)),
        *(scratch.data_ptr(), each, partial.data_ptr(), partial_bytes, arrived.data_ptr()),
    )
    team.run(function, words, tasks)
    return out
