"""Block ids: who holds which block, how often, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import expect, fill, layout_for, locations
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError
from sagellm_backend.kv import KVPool

BLOCKS = 16


@case("kv", requires=(Feature.KV_POOL,), params={"location": locations})
def ids_are_distinct_and_the_callers(exam: Exam) -> None:
    """Batches of block ids are int32 arrays without a block in common, which the caller may change.

    Kills: an allocator that hands a block out twice, ids outside of the pool, and one that keeps
    the array that it returned.
    """
    pool = _pool(exam)
    batches: list[Any] = [pool.alloc(count) for count in (1, 0, 5, 10)]
    for ids, count in zip(batches, (1, 0, 5, 10), strict=True):
        exam.check(
            isinstance(ids, np.ndarray) and ids.shape == (count,) and ids.dtype == np.int32,
            f"alloc({count}) returned {type(ids).__name__} {ids!r}, not int32 of shape ({count},).",
        )
    handed_out = sorted(int(block) for ids in batches for block in ids)
    exam.check(handed_out == list(range(BLOCKS)), f"{BLOCKS} blocks came as {handed_out}.")
    for ids in batches:
        ids.setflags(write=True)
        ids[:] = 0
    exam.check(pool.free(list(range(BLOCKS))) == BLOCKS, "Ids changed with the caller's array.")
    exam.check(pool.num_free == BLOCKS, f"{pool.num_free} of {BLOCKS} blocks are free at the end.")
    ids = pool.alloc(6)
    kept = ids.tolist()
    pool.free(kept[::-1])
    pool.alloc(3)
    exam.check(ids.tolist() == kept, f"The caller's array of {kept} changed to {ids.tolist()}.")


@case("kv", requires=(Feature.KV_POOL,))
def alloc_is_all_or_nothing(exam: Exam) -> None:
    """Blocks that a pool does not have are refused with requested and free, and none is lost.

    Kills: handing out what is left, losing it, an untyped error, and a pool that stays exhausted.
    """
    pool = _pool(exam)
    held = pool.alloc(BLOCKS - 3)
    for count in (4, BLOCKS, 1 << 40):
        error = exam.refuses(OutOfMemoryError, pool.alloc, count, says=(f"{count:,}", 3))
        numbers = {name: error.numbers.get(name) for name in ("requested", "free")}
        exam.check(numbers == {"requested": count, "free": 3}, f"alloc({count}) says {numbers}.")
        exam.check(pool.num_free == 3, f"{pool.num_free} blocks are free after a refusal, not 3.")
    tokens = 3 * pool.layout.block_size
    exam.refuses(OutOfMemoryError, pool.alloc_tokens, tokens + 1)
    rest = pool.alloc_tokens(tokens)
    exam.check(rest.size == 3 and pool.num_free == 0, "The last blocks were not handed out.")
    exam.refuses(OutOfMemoryError, pool.alloc, 1)
    exam.check(pool.alloc(0).size == 0, "alloc(0) of a full pool is not empty.")
    pool.free(held[:5])
    exam.check(pool.alloc(5).size == 5, "A pool that was exhausted does not recover.")


@case("kv", requires=(Feature.KV_POOL,))
def tokens_take_whole_blocks(exam: Exam) -> None:
    """alloc_tokens gives as many blocks as the tokens begin, none for no token.

    Kills: rounding down, and one block too many at an exact multiple.
    """
    pool = _pool(exam)
    size = pool.layout.block_size
    for tokens, blocks in ((0, 0), (1, 1), (size, 1), (size + 1, 2), (3 * size, 3)):
        ids = pool.alloc_tokens(tokens)
        exam.check(ids.size == blocks, f"{tokens} tokens in blocks of {size} took {ids.size}.")
        pool.free(ids)
    exam.refuses(InvalidArgumentError, pool.alloc_tokens, -1)
    exam.refuses(InvalidArgumentError, pool.alloc_tokens, 1.5)


@case("kv", requires=(Feature.KV_POOL,))
def free_refuses_what_is_not_held(exam: Exam) -> None:
    """Double frees, strangers, duplicates and nonsense are refused and change nothing at all.

    Kills: a silent double free, a batch that is freed up to its bad member, and unchecked ids.
    """
    pool = _pool(exam)
    held, gone = pool.alloc(6), pool.alloc(2)
    shared = held[:2]
    pool.retain(shared)
    pool.free(gone)
    wanted = fill(exam, pool)
    for ids in _bad_batches([int(block) for block in held], int(gone[0])):
        for call in (pool.free, pool.retain):
            exam.refuses(InvalidArgumentError, call, ids)
            _unchanged(exam, pool, held, shared, ids)
    expect(exam, pool, wanted, "After refused calls")
    pool.free(held)
    exam.refuses(InvalidArgumentError, pool.free, held)
    exam.check(pool.free(shared) == 2, "The second reference was lost in a refused call.")
    exam.check(pool.num_free == BLOCKS, f"{pool.num_free} of {BLOCKS} blocks are free at the end.")


@case("kv", requires=(Feature.KV_POOL,))
def references_are_counted(exam: Exam) -> None:
    """A block is free after as many frees as it had references, neither before nor later.

    Kills: a reference count that is off by one either way, a retain without effect, and counts
    that blocks of one batch share.
    """
    pool = _pool(exam)
    first, second = pool.alloc(4), pool.alloc(2)
    for _ in range(3):
        pool.retain(first[1:3])
    counts = pool.references(np.concatenate([first, second])).tolist()
    exam.check(counts == [1, 4, 4, 1, 1, 1], f"References are {counts}.")
    for left in (3, 2, 1):
        exam.check(pool.free(first[1:3]) == 0, "A block was freed that has references.")
        exam.check(pool.references(first[1:3]).tolist() == [left] * 2, "A free dropped not one.")
        others = pool.alloc(pool.num_free)
        exam.check(not set(others) & set(first), "A block with references was handed out.")
        pool.free(others)
    exam.check(pool.free(first) == 4, "The last reference did not free.")
    exam.check(pool.references(first).tolist() == [0] * 4, "A free block has references.")
    exam.refuses(InvalidArgumentError, pool.retain, first, says=(first[0],))
    exam.check(pool.alloc(BLOCKS - 2).size == BLOCKS - 2, "Freed blocks did not come back.")


@case("kv", requires=(Feature.KV_POOL,))
def pools_do_not_know_each_others_blocks(exam: Exam) -> None:
    """What one pool handed out is refused by another, of this provider and of a second one.

    Kills: ids that are counted for all pools together.
    """
    pool, other = _pool(exam), _pool(exam)
    stranger = exam.make().kv_pool(pool.layout, BLOCKS)
    held = pool.alloc(3)
    for foreign in (other, stranger):
        exam.check(foreign.num_free == BLOCKS, "Blocks of one pool are missing in another.")
        exam.refuses(InvalidArgumentError, foreign.free, held)
        exam.refuses(InvalidArgumentError, foreign.retain, held)
        exam.check(foreign.alloc(BLOCKS).size == BLOCKS, "A pool lost blocks to another.")
    exam.check(pool.free(held) == 3, "A pool lost its blocks to another.")


def _pool(exam: Exam) -> KVPool:
    location = exam["location"] if "location" in exam.case.values else "device"
    return exam.provider.kv_pool(layout_for(exam.capability), BLOCKS, location)


def _bad_batches(held: list[int], freed: int) -> list[Any]:
    good = held[2]
    return [
        [freed],
        [good, freed],
        [good, good],
        [good, held[3], good],
        [good, BLOCKS],
        [good, -1],
        [good, 1 << 40],
        [float(good)],
        [[good]],
        [True],
        good,
        None,
        "0",
    ]


def _unchanged(exam: Exam, pool: KVPool, held: Any, shared: Any, ids: Any) -> None:
    counts = dict(zip(held.tolist(), pool.references(held).tolist(), strict=True))
    wanted = {block: 2 if block in shared else 1 for block in held.tolist()}
    exam.check(
        counts == wanted and pool.num_free == BLOCKS - len(held),
        f"A refused call on {ids!r} changed references to {counts}, free blocks to {pool.num_free}.",
    )
