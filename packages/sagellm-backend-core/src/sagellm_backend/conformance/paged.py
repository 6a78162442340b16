"""Paged caches on the host, with shuffled blocks and NaN wherever no token is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType
from sagellm_backend.ops import OPERATIONS

Array = np.ndarray[Any, Any]

ATTENTION = OPERATIONS["attention"]


def dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The dtypes that attention is declared for."""
    return capability.operations.get("attention", ())


@dataclass(frozen=True)
class Paged:
    """Caches of shape (blocks, block size, kv heads, head size), and the table into them."""

    k: Array
    v: Array
    table: Array
    size: int

    @classmethod
    def place(
        cls,
        exam: Exam,
        lengths: Sequence[int],
        packed: Sequence[Array],
        size: int,
        *,
        spare: int = 3,
        blocks: int = 0,
    ) -> Paged:
        """Lay packed keys and values of sequences of these ``lengths`` into blocks of ``size``.

        ``spare`` blocks stay free, or as many as make ``blocks`` in all.
        """
        counts = [-(-length // size) for length in lengths]
        total = blocks or sum(counts) + spare
        order = exam.rng.permutation(total)
        table = np.full((len(lengths), max(counts)), -1, np.int32)
        shape = (total, size, *packed[0].shape[1:])
        made = [np.full(shape, np.nan, array.dtype) for array in packed]
        block = token = 0
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            table[row, :count] = order[block : block + count]
            column, offset = np.divmod(np.arange(length), size)
            for cache, array in zip(made, packed, strict=True):
                cache[table[row, column], offset] = array[token : token + length]
            block, token = block + count, token + length
        return cls(made[0], made[1], table, size)

    def queries(self, exam: Exam, tokens: int, *, heads: int) -> Array:
        """Normal queries, four times as large, so that the logits have a wide range."""
        drawn = np.asarray(exam.rng.normal(0.0, 4.0, (tokens, heads, self.k.shape[-1])))
        return drawn.astype(self.k.dtype)

    def other(self, exam: Exam) -> Paged:
        """The same places with other keys and values."""
        drawn = (np.asarray(exam.rng.standard_normal(self.k.shape)) for _ in range(2))
        k, v = (np.where(np.isnan(self.k), self.k, each.astype(self.k.dtype)) for each in drawn)
        return replace(self, k=k, v=v)


def random_cache(
    exam: Exam,
    lengths: Sequence[int],
    size: int,
    *,
    kv_heads: int,
    width: int,
    spare: int = 3,
    blocks: int = 0,
) -> Paged:
    """Normal keys and values in the dtype of the case."""
    shape = (sum(lengths), kv_heads, width)
    packed = [exam.rng.standard_normal(shape).astype(exam["dtype"].numpy) for _ in range(2)]
    return Paged.place(exam, lengths, packed, size, spare=spare, blocks=blocks)
