"""Attention metadata: lengths and blocks of one batch step, checked once, used in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import numpy as np

from sagellm_backend.checks import check_int, shown
from sagellm_backend.errors import InvalidArgumentError

Mode = Literal["ragged_prefill", "paged_prefill", "paged_decode"]
Array = np.ndarray[Any, Any]

_INT32_MAX = 2**31 - 1


@final
class AttentionMetadata:
    """What one batch step knows of its sequences; immutable, to be shared by layers and threads.

    Make one with :meth:`build`. All arrays are host NumPy arrays and read-only. ``query_lens[i]``
    is the number of new tokens of sequence ``i``, ``kv_lens[i]`` the number of its tokens with
    these; the new tokens are its last. ``block_table[i]`` lists the blocks that hold them, in
    order, or is ``None`` when keys and values come packed (ragged). ``mode`` is
    ``ragged_prefill``, ``paged_prefill``, or ``paged_decode`` when every sequence has one new
    token.

    ``native`` belongs to the provider that computes with this object: it keeps device copies there,
    under keys of its own, so that they are made once per step and not once per layer.
    """

    __slots__ = (
        "_max_block",
        "_positions",
        "_slots",
        "batch",
        "block_size",
        "block_table",
        "cu_kv",
        "cu_query",
        "kv_lens",
        "max_kv_len",
        "max_query_len",
        "mode",
        "native",
        "query_lens",
    )

    batch: int
    block_size: int | None
    block_table: Array | None
    cu_kv: Array
    cu_query: Array
    kv_lens: Array
    max_kv_len: int
    max_query_len: int
    mode: Mode
    native: dict[Any, Any]
    query_lens: Array
    _max_block: int
    _positions: Array | None
    _slots: Array | None

    def __init__(self) -> None:
        raise TypeError("AttentionMetadata is made by AttentionMetadata.build(...)")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"AttentionMetadata is immutable: {name} cannot be set")

    @classmethod
    def build(
        cls,
        query_lens: Sequence[int] | Array,
        kv_lens: Sequence[int] | Array | None = None,
        block_table: Sequence[Sequence[int]] | Array | None = None,
        block_size: int | None = None,
    ) -> AttentionMetadata:
        """Check and derive. Copies its inputs, which stay the caller's.

        ``kv_lens`` includes the new tokens and is ``query_lens`` by default. ``block_table`` is a
        (batch, blocks) array padded with -1, or one list of blocks per sequence; it needs
        ``block_size``, the tokens per block. Sequences may share blocks (a common prefix). Raises
        :class:`InvalidArgumentError` for lengths below 1, a ``kv_len`` below its ``query_len``, and
        a row of blocks that is too short or has a negative id where one is needed.
        """
        query = _lengths("query_lens", query_lens)
        kv = query if kv_lens is None else _lengths("kv_lens", kv_lens)
        _check_lengths(query, kv)
        table = None if block_table is None else _table(block_table)
        max_block = -1
        if table is not None:
            max_block = _check_table(table, kv, block_size)
        elif block_size is not None:
            raise InvalidArgumentError("block_size was given without a block_table.")
        return cls._make(query, kv, table, block_size, max_block)

    @classmethod
    def _make(
        cls, query: Array, kv: Array, table: Array | None, block_size: int | None, max_block: int
    ) -> AttentionMetadata:
        self = object.__new__(cls)
        max_query_len = int(query.max())
        values: dict[str, Any] = {
            "query_lens": _frozen(query),
            "kv_lens": _frozen(kv),
            "block_table": None if table is None else _frozen(table),
            "block_size": None if block_size is None else int(block_size),
            "batch": len(query),
            "cu_query": _frozen(_cumulative("query_lens", query)),
            "cu_kv": _frozen(_cumulative("kv_lens", kv)),
            "max_query_len": max_query_len,
            "max_kv_len": int(kv.max()),
            "mode": _mode(table is not None, max_query_len),
            "native": {},
            "_max_block": max_block,
            "_positions": None,
            "_slots": None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        return self

    @property
    def num_query_tokens(self) -> int:
        """New tokens of all sequences: the rows of the queries."""
        return int(self.cu_query[-1])

    def positions(self) -> Array:
        """The int64 position of each new token in its sequence, for rope."""
        if self._positions is None:
            first = self.kv_lens.astype(np.int64) - self.query_lens - self.cu_query[:-1]
            found = np.arange(self.num_query_tokens) + np.repeat(first, self.query_lens)
            object.__setattr__(self, "_positions", _frozen(found))
        assert self._positions is not None
        return self._positions

    def slots(self) -> Array:
        """The int64 slot (``block * block_size + offset``) of each new token, for kv_write.

        Raises :class:`InvalidArgumentError` when keys are ragged, and when two sequences would
        write into one block, which corrupts what they share.
        """
        if self._slots is None:
            object.__setattr__(self, "_slots", _frozen(self._make_slots()))
        assert self._slots is not None
        return self._slots

    def check_blocks(self, num_blocks: int) -> None:
        """Refuse block ids that a cache of ``num_blocks`` blocks does not have."""
        if self._max_block >= num_blocks:
            raise InvalidArgumentError(
                f"block_table has block {self._max_block}, and the cache has {num_blocks} blocks, "
                f"0 to {num_blocks - 1}.",
                block=self._max_block,
                num_blocks=num_blocks,
            )

    def _make_slots(self) -> Array:
        if self.block_table is None or self.block_size is None:
            raise InvalidArgumentError(
                "Ragged keys have no slots.", hint="Build the metadata with a block_table."
            )
        sequence = np.repeat(np.arange(self.batch), self.query_lens)
        column, offset = np.divmod(self.positions(), self.block_size)
        block = self.block_table[sequence, column].astype(np.int64)
        _check_writers(block, sequence)
        return block * self.block_size + offset

    def __repr__(self) -> str:
        blocks = "" if self.block_size is None else f", block_size={self.block_size}"
        return (
            f"AttentionMetadata({self.mode}, batch={self.batch}, "
            f"query_tokens={self.num_query_tokens}, max_kv_len={self.max_kv_len}{blocks})"
        )


def _mode(paged: bool, max_query_len: int) -> Mode:
    if not paged:
        return "ragged_prefill"
    return "paged_decode" if max_query_len == 1 else "paged_prefill"


def _frozen(array: Array) -> Array:
    array.setflags(write=False)
    return array


def _integers(name: str, values: Any) -> Array:
    """An int64 array of our own."""
    try:
        # Not np.array: it asks for a copy in a way that tensors of torch do not know.
        array = np.asarray(values)
    except Exception as error:
        raise InvalidArgumentError(f"{name} is no host array of integers: {error}.") from error
    if array.size and array.dtype.kind not in "iu":
        raise InvalidArgumentError(f"{name} must be integers, not {array.dtype} {shown(values)}.")
    if array.size and not -_INT32_MAX <= int(array.min()) <= int(array.max()) <= _INT32_MAX:
        raise InvalidArgumentError(f"{name} holds {array.max()}, the limit is {_INT32_MAX}.")
    return np.array(array, np.int32)


def _lengths(name: str, values: Any) -> Array:
    array = _integers(name, values)
    if array.ndim != 1 or not array.size:
        raise InvalidArgumentError(
            f"{name} must hold one length per sequence, of one sequence at least; its shape is "
            f"{array.shape}."
        )
    if array.min() < 1:
        where = int(array.argmin())
        raise InvalidArgumentError(f"{name}[{where}] is {array[where]}; a length is at least 1.")
    return array


def _check_lengths(query: Array, kv: Array) -> None:
    if len(query) != len(kv):
        raise InvalidArgumentError(
            f"There are {len(query)} query_lens and {len(kv)} kv_lens; both are per sequence."
        )
    if (kv < query).any():
        where = int((kv < query).argmax())
        raise InvalidArgumentError(
            f"kv_lens[{where}] is {kv[where]} and query_lens[{where}] is {query[where]}; kv_lens "
            "includes the new tokens."
        )


def _table(values: Any) -> Array:
    if isinstance(values, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in values):
        width = max(map(len, values), default=0)
        values = [[*row, *[-1] * (width - len(row))] for row in values]
    return _integers("block_table", values)


def _check_table(table: Array, kv: Array, block_size: int | None) -> int:
    """Refuse a table that does not cover ``kv``; the highest block id in use otherwise."""
    block_size = check_int("block_size", block_size)
    if table.ndim != 2 or len(table) != len(kv):
        raise InvalidArgumentError(
            f"block_table has shape {table.shape}, wanted (batch, blocks) with batch {len(kv)}."
        )
    needed = -(-kv.astype(np.int64) // block_size)
    if needed.max() > table.shape[1]:
        where = int(needed.argmax())
        raise InvalidArgumentError(
            f"block_table has {table.shape[1]} blocks per sequence; kv_lens[{where}] of "
            f"{kv[where]} needs {needed[where]} blocks of {block_size}.",
            needed=int(needed[where]),
            blocks=table.shape[1],
        )
    used = np.arange(table.shape[1]) < needed[:, None]
    bad = used & (table < 0)
    if bad.any():
        row, column = (int(index) for index in np.argwhere(bad)[0])
        raise InvalidArgumentError(
            f"block_table[{row}, {column}] is {table[row, column]}; kv_lens[{row}] of {kv[row]} "
            f"needs {needed[row]} blocks of {block_size}."
        )
    return int(table[used].max())


def _check_writers(block: Array, sequence: Array) -> None:
    batch = int(sequence[-1]) + 1
    pairs = np.unique(block * batch + sequence)
    blocks = pairs // batch
    shared = np.flatnonzero(blocks[1:] == blocks[:-1])
    if shared.size:
        number = int(blocks[shared[0]])
        writers = (pairs[blocks == number] % batch).tolist()
        raise InvalidArgumentError(
            f"Block {number} would be written by sequences {writers} in one step.",
            hint="Copy a shared block before appending to it.",
            block=number,
        )


def _cumulative(name: str, lengths: Array) -> Array:
    total = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    if total[-1] > _INT32_MAX:
        raise InvalidArgumentError(
            f"{name} add up to {total[-1]} tokens, the limit is {_INT32_MAX}."
        )
    return total.astype(np.int32)
