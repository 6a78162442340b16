"""The tensors of one batch step on a device: what kernels read that take lengths from there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.torch_support import memory

KEY = "torch.step"
"""Where a metadata's ``native`` keeps its :class:`Step`."""


class Step(NamedTuple):
    """Lengths and blocks, int32. ``table`` (batch, width) has 0 where no block is, so that every
    entry may be read; ragged steps have none.
    """

    cu_query: Tensor
    cu_kv: Tensor
    kv_lens: Tensor
    table: Tensor | None


def prepare(metadata: AttentionMetadata, device: torch.device) -> Step:
    """The step of ``metadata`` on ``device``, made at the first call and kept in the metadata."""
    found: Step | None = metadata.native.get(KEY)
    if found is None or found.kv_lens.device != device:
        found = metadata.native[KEY] = _make(metadata, device)
    return found


def _make(metadata: AttentionMetadata, device: torch.device) -> Step:
    table = metadata.block_table
    parts = [metadata.cu_query, metadata.cu_kv, metadata.kv_lens]
    if table is not None:
        parts.append(table.clip(0).ravel())
    # One copy for all: each costs more than what it carries.
    sizes = [len(part) for part in parts]
    tensors = memory.to_device(torch.from_numpy(np.concatenate(parts)), device).split(sizes)
    cu_query, cu_kv, kv_lens, *rest = tensors
    return Step(cu_query, cu_kv, kv_lens, rest[0].view(table.shape) if table is not None else None)


def misfit(captured: AttentionMetadata, new: AttentionMetadata) -> str:
    """Why a graph of ``captured`` cannot serve ``new``; empty where it can.

    A graph of a decode step has the batch and the width of its table for good; of any other step,
    all that the host knows of it.
    """
    if captured.mode != new.mode:
        return f"its mode is {new.mode}, not {captured.mode}"
    if captured.batch != new.batch:
        return f"it has {new.batch} sequences, not {captured.batch}"
    if captured.block_size != new.block_size:
        return f"its blocks have {new.block_size} tokens, not {captured.block_size}"
    if captured.block_table is None or new.block_table is None or new.mode != "paged_decode":
        same = [
            (one == other).all()
            for one, other in (
                (captured.query_lens, new.query_lens),
                (captured.kv_lens, new.kv_lens),
            )
        ]
        if not all(same):
            return f"its lengths differ, which mode {new.mode} has fixed in a graph"
    if captured.block_table is not None and new.block_table is not None:
        width, wanted = captured.block_table.shape[1], new.block_table.shape[1]
        if wanted > width:
            return f"its table has {wanted} blocks per sequence, and was captured with {width}"
    return ""


def overwrite(captured: AttentionMetadata, new: AttentionMetadata) -> None:
    """Copy the step of ``new`` into the tensors that a graph reads; both are prepared."""
    target, source = captured.native[KEY], new.native[KEY]
    for into, value in zip(target[:3], source[:3], strict=True):
        into.copy_(value)
    if target.table is not None and source.table is not None:
        target.table[:, : source.table.shape[1]].copy_(source.table)
