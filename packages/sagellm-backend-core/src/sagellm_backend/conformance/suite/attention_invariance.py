"""Attention: what must not matter to the result does not change a bit of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.calls import judged, native_call, results
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.paged import ATTENTION, Array, dtypes
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError


@cache
def _paged_labels() -> tuple[str, ...]:
    cases = ATTENTION.inputs(np.random.default_rng(0), DType.FP32)
    return tuple(item.label for item in cases if item["metadata"].block_table is not None)


def _paged(_: CapabilityDescriptor) -> tuple[str, ...]:
    return _paged_labels()


_PARAMS = {"dtype": dtypes, "case": _paged}


@case("attention", depth="standard", params=_PARAMS)
def permuted_blocks(exam: Exam) -> None:
    """Where the blocks lie does not matter: moved with their table, they give the same bits.

    Kills a kernel that ignores the table for some block, or reads its neighbours.
    """
    arguments = _generated(exam)
    metadata, count = arguments["metadata"], len(arguments["k"])
    target = exam.rng.permutation(count)
    source = np.argsort(target)
    table = np.where(metadata.block_table < 0, -1, target[metadata.block_table])
    moved = {
        **arguments,
        "k": arguments["k"][source],
        "v": arguments["v"][source],
        "metadata": _metadata(metadata, table),
    }
    _same_bits(exam, arguments, moved, "the blocks permuted")


@case("attention", depth="standard", params=_PARAMS)
def unused_slots(exam: Exam) -> None:
    """What lies in slots and blocks that no token uses does not matter, be it NaN, inf or numbers.

    Kills a kernel that multiplies what it masks by 0, or reads to the end of the last block.
    """
    arguments = _generated(exam)
    extra = exam.rng.integers(1, 4)
    for filling in (np.inf, -1.0, 30000.0):
        changed = dict(arguments)
        for name in ("k", "v"):
            cache_ = arguments[name]
            grown = np.concatenate(
                [cache_, np.full((extra, *cache_.shape[1:]), np.nan, cache_.dtype)]
            )
            changed[name] = np.where(np.isnan(grown), cache_.dtype.type(filling), grown)
        _same_bits(exam, arguments, changed, f"{filling} in unused slots")


@case("attention", depth="standard", params=_PARAMS)
def padding_of_tables(exam: Exam) -> None:
    """Columns of the table behind the last block of a sequence are not read, be they -1 or ids.

    Kills a kernel that counts columns and not tokens, and one that reads block -1.
    """
    arguments = _generated(exam)
    metadata = arguments["metadata"]
    unused = sorted({*range(len(arguments["k"]))} - {*metadata.block_table.ravel().tolist()})
    for filling in (-1, unused[0]):
        table = np.concatenate(
            [metadata.block_table, np.full((metadata.batch, 5), -1, np.int32)], axis=1
        )
        table = np.where(table < 0, filling, table)
        changed = {**arguments, "metadata": _metadata(metadata, table)}
        judged(exam, ATTENTION, changed, exam["dtype"], exact=exam["case"].find("needle") >= 0)


@case(
    "attention",
    params={"dtype": dtypes, "mask": ("causal", "window"), "keys": ("ragged", "paged")},
)
def hidden_tokens(exam: Exam) -> None:
    """A key that a query must not see changes nothing of its row, and a key that it sees does.

    Kills a causal mask or a window that is off by one, to either side.
    """
    query, kv, width = 9, 21, 32
    window = 6 if exam["mask"] == "window" else None
    q, k, v = (
        (scale * exam.rng.standard_normal((tokens, 2, width))).astype(exam["dtype"].numpy)
        for scale, tokens in ((2.0, query), (1.0, kv), (1.0, kv))
    )
    if exam["keys"] == "ragged":
        q = np.concatenate([exam.rng.standard_normal((kv - query, 2, width)).astype(q.dtype), q])
    first = kv - len(q)
    options = {"scale": width**-0.5, "window": window}
    before = _rows(exam, q, k, v, options)
    for position in range(first, kv):
        changed_k, changed_v = k.copy(), v.copy()
        changed_k[position] *= -3
        changed_v[position] = 5 - changed_v[position]
        after = _rows(exam, q, changed_k, changed_v, options)
        for row in range(len(q)):
            own = first + row
            seen = position <= own and (window is None or position > own - window)
            same = before[row].tobytes() == after[row].tobytes()
            exam.check(
                same is not seen,
                f"the query at {own} {'ignores' if seen else 'is changed by'} the key at {position}"
                + (f" with a window of {window}." if window else "."),
            )


def _rows(exam: Exam, q: Array, k: Array, v: Array, options: dict[str, Any]) -> Array:
    provider = exam.provider
    if exam["keys"] == "ragged":
        metadata = provider.attention_metadata([len(q)])
    else:
        size = 4
        count = -(-len(k) // size)
        metadata = provider.attention_metadata([len(q)], [len(k)], [list(range(count))], size)
        padding = np.full((count * size - len(k), *k.shape[1:]), np.nan, k.dtype)
        k, v = (np.concatenate([x, padding]).reshape(count, size, *k.shape[1:]) for x in (k, v))
    kernel = provider.get_kernel("attention", dtype=exam["dtype"])
    arrays = {name: provider.from_numpy(array) for name, array in (("q", q), ("k", k), ("v", v))}
    result: Array = provider.to_numpy(kernel(**arrays, metadata=metadata, **options))
    return result


def _generated(exam: Exam) -> dict[str, Any]:
    cases = ATTENTION.inputs(exam.rng, exam["dtype"])
    return ATTENTION.bind((), next(item for item in cases if item.label == exam["case"]))


def _metadata(old: AttentionMetadata, table: Array) -> AttentionMetadata:
    return AttentionMetadata.build(old.query_lens, old.kv_lens, table, old.block_size)


def _same_bits(exam: Exam, arguments: dict[str, Any], changed: dict[str, Any], what: str) -> None:
    try:
        exam.provider.get_kernel("attention", **ATTENTION.statics_of(arguments))
    except CapabilityError:
        exam.measure("refused", 1)
        return
    (before,), (after,) = (
        results(exam, ATTENTION, native_call(exam, each)) for each in (arguments, changed)
    )
    exam.equal_bits(after, before, what)
