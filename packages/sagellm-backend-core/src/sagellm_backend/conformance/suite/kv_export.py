"""Exported KV pools: one memory in two processes."""

from __future__ import annotations

from collections.abc import Iterator

from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.letters import Letters
from sagellm_backend.conformance.pages import Pages, expect, write
from sagellm_backend.conformance.pools import plain_layout
from sagellm_backend.errors import BackendError, InvalidArgumentError, UnavailableError
from sagellm_backend.kv import KVPool

BLOCKS = 6
_EXPORT = (Feature.KV_EXPORT, Feature.KV_POOL)


@case("kv", requires=_EXPORT, world=2)
def an_exported_pool_is_one_memory(exam: Exam) -> None:
    """What a process writes into a pool, the process that opened it reads, and the other way round.

    Closing what was opened leaves the pool as it was, and it can be opened anew. Kills: a copy, at
    the opening or of the first bits only; another layout; and a pool that is closed from afar.
    """
    with Letters(exam) as letters:
        pages = [_drawn(exam) for _ in range(3)]
        (_lend if exam.rank == 0 else _borrow)(exam, letters, exam.make(device=0), *pages)


@case("kv", requires=_EXPORT, world=2)
def handles_are_refused_when_they_are_not_whole(exam: Exam) -> None:
    """A handle that was cut, lengthened or changed opens nothing, nor one of a pool that is closed.

    Blocks of an opened pool are counted elsewhere: none can be allocated or freed. A handle that is
    opened a second time gives the same memory, or is refused. Kills: handles that are believed
    unseen, and two processes that share out the same blocks.
    """
    with Letters(exam) as letters:
        pages = [_drawn(exam) for _ in range(2)]
        (_lend_once if exam.rank == 0 else _misuse)(exam, letters, exam.make(device=0), *pages)


def _lend(
    exam: Exam,
    letters: Letters,
    provider: BackendProvider,
    first: Pages,
    second: Pages,
    third: Pages,
) -> None:
    with provider.kv_pool(plain_layout(exam), BLOCKS) as pool:
        _put(provider, pool, first)
        letters.send("handle", provider.kv_export(pool))
        letters.receive("read and written")
        expect(exam, pool, second, "What the other process wrote", provider)
        _put(provider, pool, third)
        letters.send("written")
        letters.receive("closed")
        expect(exam, pool, third, "The pool after the other process closed it", provider)


def _borrow(
    exam: Exam,
    letters: Letters,
    provider: BackendProvider,
    first: Pages,
    second: Pages,
    third: Pages,
) -> None:
    handle = letters.receive("handle")
    pool = provider.kv_open(handle)
    _same_form(exam, pool)
    expect(exam, pool, first, "A pool that was opened", provider)
    _put(provider, pool, second)
    letters.send("read and written")
    letters.receive("written")
    expect(exam, pool, third, "What was written after the opening", provider)
    pool.close()
    exam.refuses(UnavailableError, pool.key_cache, 0, says=("closed",))
    with provider.kv_open(handle) as again:
        expect(exam, again, third, "A pool that was opened anew", provider)
    letters.send("closed")


def _lend_once(
    exam: Exam, letters: Letters, provider: BackendProvider, pages: Pages, _: Pages
) -> None:
    with provider.kv_pool(plain_layout(exam), BLOCKS) as pool:
        _put(provider, pool, pages)
        pool.alloc(2)
        letters.send("handle", provider.kv_export(pool))
        letters.receive("done")
    letters.send("gone")


def _misuse(
    exam: Exam, letters: Letters, provider: BackendProvider, pages: Pages, other: Pages
) -> None:
    handle = letters.receive("handle")
    for bad in _spoilt(handle):
        exam.refuses(InvalidArgumentError, provider.kv_open, bad)
    with provider.kv_open(handle) as pool:
        expect(exam, pool, pages, "A pool that was opened after bad handles", provider)
        for call, argument in ((pool.alloc, 1), (pool.free, [0]), (pool.retain, [0])):
            exam.refuses(BackendError, call, argument)
        _open_twice(exam, provider, handle, pool, other)
    letters.send("done")
    letters.receive("gone")
    exam.refuses(BackendError, provider.kv_open, handle)


def _open_twice(
    exam: Exam, provider: BackendProvider, handle: bytes, pool: KVPool, pages: Pages
) -> None:
    try:
        twin = provider.kv_open(handle)
    except BackendError:
        return
    with twin:
        _put(provider, twin, pages)
        expect(exam, pool, pages, "A pool that was opened twice", provider)
    expect(exam, pool, pages, "A pool whose twin was closed", provider)


def _spoilt(handle: bytes) -> Iterator[bytes]:
    """The handle cut short, lengthened, and with one bit changed in each of many places."""
    yield from (handle[:-1], handle[: len(handle) // 2], handle + b"\0", handle + handle)
    for place in range(0, len(handle), max(len(handle) // 16, 1)):
        changed = bytearray(handle)
        changed[place] ^= 1
        yield bytes(changed)


def _same_form(exam: Exam, pool: KVPool) -> None:
    wanted = plain_layout(exam)
    exam.check(pool.layout == wanted, f"The opened pool has {pool.layout}, wanted {wanted}.")
    exam.check(pool.num_blocks == BLOCKS, f"The opened pool has {pool.num_blocks} blocks.")


def _drawn(exam: Exam) -> Pages:
    """Bits for a whole pool, the same in both processes."""
    layout = plain_layout(exam)
    block = (layout.block_size, layout.num_kv_heads, layout.head_dim)
    return exam.fill((layout.num_layers, 2, BLOCKS, *block), layout.dtype)


def _put(provider: BackendProvider, pool: KVPool, pages: Pages) -> None:
    write(provider, pool, pages)
    provider.synchronize()
