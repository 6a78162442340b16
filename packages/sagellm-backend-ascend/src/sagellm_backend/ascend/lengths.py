"""The lengths of one step as the fused operators take them: lists on the host."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from sagellm_backend.ascend.soc import BLOCK_SIZE
from sagellm_backend.attention import AttentionMetadata

_KEY = "ascend.lengths"


class Lengths(NamedTuple):
    """Cumulative queries, keys cumulative and per sequence.

    ``blocks`` are those of all sequences together, shared ones counted once for each.
    """

    cu_query: list[int]
    cu_kv: list[int]
    kv: list[int]
    blocks: int


def lengths_of(metadata: AttentionMetadata) -> Lengths:
    """The lengths of ``metadata``, made at the first call and kept in it."""
    found: Lengths | None = metadata.native.get(_KEY)
    if found is None:
        kv = metadata.kv_lens.tolist()
        cu_query = metadata.cu_query[1:].tolist()
        blocks = sum(-(-length // BLOCK_SIZE) for length in kv)
        found = metadata.native[_KEY] = Lengths(cu_query, list(accumulate(kv)), kv, blocks)
    return found
