"""Paged metadata: one batch step in the words of the published engine, isagellm-core 0.5."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sagellm_backend.attention.metadata import Array, AttentionMetadata
from sagellm_backend.checks import check_int, shown
from sagellm_backend.errors import InvalidArgumentError

BLOCK_SIZE = 16
"""The tokens per block of the published engine."""

_INT32_MAX = 2**31 - 1


@dataclass(eq=False)
class PagedAttentionMetadata:
    """One batch step for :class:`~sagellm_backend.torch_support.paged_attention.PagedAttentionBackend`.

    Made by :class:`PagedAttentionMetadataBuilder`. ``step`` is what attention computes with and
    cannot be changed. The other fields have the names, types and meanings of the published engine,
    are made from it, and are for the caller to read: ``block_tables`` (batch, blocks) and
    ``slot_mapping`` (new tokens,) are int64 tensors on ``device``, a slot is ``block * block_size +
    offset``, and ``context_lens`` counts the tokens before the new one, ``None`` in a prefill.
    ``extra`` is the caller's own.
    """

    step: AttentionMetadata
    is_prefill: bool
    seq_lens: list[int]
    context_lens: list[int] | None
    max_seq_len: int
    block_tables: Any
    slot_mapping: Any
    block_size: int
    device: Any
    num_tokens: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class PagedAttentionMetadataBuilder:
    """Checks the lengths and blocks of a step, so that no kernel meets bad ones. Thread-safe.

    ``block_size`` is the tokens per block, ``device`` the torch device of the tensors made, a
    ``torch.device`` or its name; by default that of the block tables where they are tensors, the
    CPU otherwise. Raises :class:`InvalidArgumentError` for a bad size or device, and
    :class:`UnavailableError` for a device that this machine does not have. Needs torch.
    """

    def __init__(self, block_size: int = BLOCK_SIZE, device: Any = None) -> None:
        from sagellm_backend.torch_support.paged_tensors import check_device

        self.block_size = check_int("block_size", block_size)
        self.device = None if device is None else check_device(device)

    def build_prefill_metadata(
        self,
        seq_lens: Any,
        block_tables: Any,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
    ) -> PagedAttentionMetadata:
        """A step in which all tokens of every sequence are new.

        ``seq_lens[i]`` is the length of sequence ``i``, 1 or more. ``block_tables`` is an integer
        (batch, blocks) tensor, array or list of lists; ``block_tables[i]`` names the blocks of
        sequence ``i`` in order, and what follows the needed ones is not looked at. The inputs are
        copied. ``num_kv_heads`` and ``head_dim``, when given, are held against the keys later.

        Raises :class:`InvalidArgumentError` for lengths below 1 or of a float type, a table of
        another batch, too few blocks, a negative id where one is needed, and a block that would be
        written and is in use a second time, in the same sequence or in another.
        """
        lengths = _lengths("seq_lens", seq_lens, 1)
        return self._build(lengths, None, block_tables, num_kv_heads, head_dim)

    def build_decode_metadata(
        self,
        context_lens: Any,
        block_tables: Any,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
    ) -> PagedAttentionMetadata:
        """A step with one new token for every sequence, behind ``context_lens[i]`` others.

        The new token is not counted in ``context_lens``, and the table has a block for it. Blocks
        that are only read may be shared between sequences. Otherwise like
        :meth:`build_prefill_metadata`; a ``context_len`` may be 0.
        """
        context = _lengths("context_lens", context_lens, 0)
        return self._build(np.ones_like(context), context, block_tables, num_kv_heads, head_dim)

    def _build(
        self, query: Array, context: Array | None, tables: Any, kv_heads: Any, head_dim: Any
    ) -> PagedAttentionMetadata:
        from sagellm_backend.torch_support import paged_tensors

        host, device = paged_tensors.host_table(tables, self.device)
        kv = None if context is None else context + 1
        step = AttentionMetadata.build(query, kv, host, self.block_size)
        _check_written_once(step)
        seq_lens = step.query_lens.tolist()
        tokens = step.num_query_tokens
        return PagedAttentionMetadata(
            step=step,
            is_prefill=context is None,
            seq_lens=seq_lens,
            context_lens=None if context is None else context.tolist(),
            max_seq_len=step.max_kv_len,
            block_tables=paged_tensors.to_tensor(step.block_table, device),
            slot_mapping=paged_tensors.slots(step, device),
            block_size=self.block_size,
            device=device,
            num_tokens=tokens,
            num_prefill_tokens=tokens if context is None else 0,
            num_decode_tokens=0 if context is None else tokens,
            num_kv_heads=None if kv_heads is None else check_int("num_kv_heads", kv_heads),
            head_dim=None if head_dim is None else check_int("head_dim", head_dim),
        )


def _lengths(name: str, values: Any, low: int) -> Array:
    """One length per sequence, ``low`` or more, as int64."""
    try:
        array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    except Exception as error:
        raise InvalidArgumentError(f"{name} is no list of integers: {error}.") from error
    mixed = isinstance(values, (list, tuple)) and bool in map(type, values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size or mixed:
        raise InvalidArgumentError(
            f"{name} must hold one integer for each sequence, not {shown(values)}."
        )
    if not low <= int(array.min()) <= int(array.max()) < _INT32_MAX:
        where = int(array.argmin() if array.min() < low else array.argmax())
        raise InvalidArgumentError(
            f"{name}[{where}] is {array[where]}; a length lies within {low} and {_INT32_MAX - 1:,}."
        )
    return array.astype(np.int64)


def _check_written_once(step: AttentionMetadata) -> None:
    """Refuse a block that gets new tokens and stands in the table twice: one use spoils the other."""
    assert step.block_table is not None
    assert step.block_size is not None
    needed = -(-step.kv_lens // step.block_size)
    used = np.arange(step.block_table.shape[1]) < needed[:, None]
    blocks, counts = np.unique(step.block_table[used], return_counts=True)
    twice = np.intersect1d(blocks[counts > 1], step.slots() // step.block_size)
    if twice.size:
        block = int(twice[0])
        users = np.flatnonzero(((step.block_table == block) & used).any(axis=1)).tolist()
        raise InvalidArgumentError(
            f"Block {block} gets new tokens and is in use twice, by sequences {users}.",
            hint="Copy a shared block before appending to it.",
            block=block,
        )
