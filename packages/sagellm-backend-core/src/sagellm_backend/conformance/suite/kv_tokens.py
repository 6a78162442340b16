"""The KV blocks of Protocol v0.1: runs of real memory, counted in tokens.

Protocol gives no access to what is in a block. Contents are seen here through core's own record of
which pool and ids stand behind a handle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import Pages, kv_dtypes, layout_for, pages_shape, read, write
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import (
    CapabilityError,
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.kv import KVBlock, KVPool

BLOCKS = 8
POOLS = (Feature.KV_POOL,)


def _copies(capability: CapabilityDescriptor) -> str | None:
    return None if capability.has_kv_block_copy else "has_kv_block_copy is not declared"


def _migrates(capability: CapabilityDescriptor) -> str | None:
    return None if capability.has_kv_block_migrate else "has_kv_block_migrate is not declared"


def _stays(capability: CapabilityDescriptor) -> str | None:
    return "has_kv_block_migrate is declared" if capability.has_kv_block_migrate else None


@case("kv", requires=POOLS, params={"dtype": kv_dtypes})
def token_blocks_are_memory_of_their_own(exam: Exam) -> None:
    """Each block says what was asked for, and holds its own bits whatever is written to the others.

    Kills: blocks that share memory, handles that repeat, and descriptions without memory behind.
    """
    provider, dtype = _provider(exam), exam["dtype"]
    size = provider.config.kv_layout.block_size
    blocks = [provider.kv_block_alloc(tokens, dtype) for tokens in (1, size, size + 1, 3 * size)]
    for block, tokens in zip(blocks, (1, size, size + 1, 3 * size), strict=True):
        exam.check(
            (block.num_tokens, block.dtype, block.device) == (tokens, dtype, provider.device),
            f"{tokens} tokens of {dtype.value} came as {block}.",
        )
    exam.check(len({block.handle for block in blocks}) == 4, "Two blocks have one handle.")
    written = [_fill(exam, provider, block) for block in blocks]
    for block, wanted in zip(blocks, written, strict=True):
        exam.equal_bits(_contents(provider, block), wanted, f"Block of {block.num_tokens} tokens")


@case("kv", requires=POOLS)
def token_blocks_are_accounted_for(exam: Exam) -> None:
    """Blocks count as KV bytes while they are held; freed ones stay reserved until clear_cache.

    Kills: statistics that never fall, that count tokens for pages, and a free without effect.
    """
    provider, dtype = _provider(exam), exam.capability.kv.dtypes[0]
    layout = dataclasses.replace(provider.config.kv_layout, dtype=dtype)
    before = provider.memory_stats()
    first = provider.kv_block_alloc(layout.block_size + 1, dtype)
    second = provider.kv_block_alloc(1, dtype)
    for held, pages in ((second, 3), (first, 2), (None, 0)):
        now = provider.memory_stats()
        grown = now["kv_bytes"] - before["kv_bytes"]
        exam.check(
            grown == layout.nbytes(pages), f"{pages} pages of {layout.page_bytes} count as {grown}."
        )
        reserved = now["reserved_bytes"] - before["reserved_bytes"]
        exam.check(reserved == layout.nbytes(BLOCKS), f"{reserved} bytes are reserved.")
        if held is not None:
            provider.kv_block_free(held)
    provider.clear_cache()
    left = provider.memory_stats()["reserved_bytes"] - before["reserved_bytes"]
    exam.check(left == 0, f"clear_cache left {left} bytes reserved.")


@case("kv", requires=POOLS)
def token_blocks_run_out_and_come_back(exam: Exam) -> None:
    """More tokens than are free are refused, with numbers, and nothing is lost by asking.

    Kills: a partial allocation, and a pool that stays exhausted.
    """
    provider, dtype = _provider(exam), exam.capability.kv.dtypes[0]
    size = provider.config.kv_layout.block_size
    block = provider.kv_block_alloc((BLOCKS - 2) * size, dtype)
    for tokens, needed in ((2 * size + 1, 3), (1 << 40, -(-(1 << 40) // size))):
        error = exam.refuses(OutOfMemoryError, provider.kv_block_alloc, tokens, dtype)
        exam.check(error.numbers.get("requested") == needed, f"{error} says {error.numbers}.")
    provider.kv_block_free(provider.kv_block_alloc(2 * size, dtype))
    provider.kv_block_free(block)
    provider.kv_block_free(provider.kv_block_alloc(BLOCKS * size, dtype))
    for count in (0, -1, 1.5, True, None):
        exam.refuses(InvalidArgumentError, provider.kv_block_alloc, count, dtype)
    for other in set(DType) - set(exam.capability.kv.dtypes):
        exam.refuses(CapabilityError, provider.kv_block_alloc, 1, other, says=(other.value,))


@case("kv", requires=POOLS)
def forged_token_blocks_are_refused(exam: Exam) -> None:
    """Blocks are frozen; forged, changed, foreign and freed ones are refused by every call.

    Kills: handles that are believed, a double free, and blocks of another provider.
    """
    provider, dtype = _provider(exam), exam.capability.kv.dtypes[0]
    block, freed = provider.kv_block_alloc(5, dtype), provider.kv_block_alloc(5, dtype)
    other = provider.kv_block_alloc(5, dtype)
    foreign = _provider(exam).kv_block_alloc(5, dtype)
    wanted = _fill(exam, provider, other)
    held = provider.memory_stats()["kv_bytes"]
    try:
        block.num_tokens = 1  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        pass
    else:
        exam.check(False, "A block can be changed by its holder.")
    for bad in _forged(block):
        _refused_everywhere(exam, provider, bad, other)
    _refused_everywhere(exam, provider, foreign, other)
    exam.check(provider.memory_stats()["kv_bytes"] == held, "A refused call changed the accounts.")
    provider.kv_block_free(freed)
    _refused_everywhere(exam, provider, freed, other)
    exam.equal_bits(_contents(provider, other), wanted, "A block after refused copies to it")
    same = dataclasses.replace(block)
    provider.kv_block_free(same)
    exam.refuses(InvalidArgumentError, provider.kv_block_free, block)


@case("kv", requires=POOLS, params={"dtype": kv_dtypes}, needs=_copies)
def token_blocks_are_copied_whole(exam: Exam) -> None:
    """kv_block_copy carries every bit over, keeps the source, and refuses unequal blocks.

    Kills: a copy that does nothing, one that goes the other way, and one block of several.
    """
    provider, dtype = _provider(exam), exam["dtype"]
    tokens = 2 * provider.config.kv_layout.block_size + 1
    source, target = (provider.kv_block_alloc(tokens, dtype) for _ in range(2))
    other = provider.kv_block_alloc(tokens - 1, dtype)
    wanted, aside = _fill(exam, provider, source), _fill(exam, provider, other)
    _fill(exam, provider, target)
    provider.kv_block_copy(source, target)
    for held, contents, word in ((target, wanted, "target"), (source, wanted, "source")):
        exam.equal_bits(_contents(provider, held), contents, f"The {word} of a block copy")
    provider.kv_block_copy(source, source)
    exam.equal_bits(_contents(provider, source), wanted, "A block copied to itself")
    for pair in ((source, other), (other, source)):
        exam.refuses(InvalidArgumentError, provider.kv_block_copy, *pair, says=(tokens,))
    exam.equal_bits(_contents(provider, other), aside, "A block after refused copies")


@case("kv", requires=POOLS, params={"dtype": kv_dtypes}, devices=2, needs=_migrates)
def token_blocks_migrate_with_their_contents(exam: Exam) -> None:
    """kv_block_migrate moves every bit to the other device, and frees the old block.

    Kills: a handle that is renamed while nothing moves, and memory kept on the old device.
    """
    provider, dtype = _provider(exam), exam["dtype"]
    there = f"{provider.device_type}:1"
    block = provider.kv_block_alloc(provider.config.kv_layout.block_size + 3, dtype)
    wanted = _fill(exam, provider, block)
    exam.check(provider.kv_block_migrate(block, provider.device) == block, "It moved to its place.")
    moved = provider.kv_block_migrate(block, there)
    exam.check(moved.device == there and moved.handle != block.handle, f"It moved to {moved}.")
    exam.equal_bits(_contents(provider, moved), wanted, "A migrated block")
    exam.check(provider.memory_stats()["kv_bytes"] == 0, "The old device still holds memory.")
    exam.check(provider.memory_stats(there)["kv_bytes"] > 0, "The new device holds no memory.")
    _refused_everywhere(exam, provider, block, moved)
    back = provider.kv_block_migrate(moved, provider.device)
    exam.equal_bits(_contents(provider, back), wanted, "A block that came back")


@case("kv", requires=POOLS)
def migration_elsewhere_is_refused(exam: Exam) -> None:
    """A block does not leave its kind of device, and a refusal leaves it where it is.

    Kills: a block that is lost or freed when its target does not exist.
    """
    provider, dtype = _provider(exam), exam.capability.kv.dtypes[0]
    block = provider.kv_block_alloc(3, dtype)
    wanted = _fill(exam, provider, block)
    foreign = "cuda:0" if provider.device_type != "cuda" else "npu:0"
    exam.refuses(CapabilityError, provider.kv_block_migrate, block, foreign, says=(foreign,))
    missing = f"{provider.device_type}:{len(exam.capability.devices)}"
    for place in (missing, "", None):
        exam.refuses(InvalidArgumentError, provider.kv_block_migrate, block, place)
    exam.equal_bits(_contents(provider, block), wanted, "A block after refused migrations")


@case("kv", requires=POOLS, devices=2, needs=_stays)
def absent_migration_is_refused(exam: Exam) -> None:
    """Where migration is not declared, a move between two devices is a CapabilityError.

    Kills: a migration that is there and not declared, and one that fails otherwise.
    """
    provider = _provider(exam)
    block = provider.kv_block_alloc(3, exam.capability.kv.dtypes[0])
    there = f"{provider.device_type}:1"
    exam.refuses(CapabilityError, provider.kv_block_migrate, block, there)


@case("kv", requires=POOLS)
def token_blocks_end_with_their_provider(exam: Exam) -> None:
    """A closed provider allocates, copies and migrates no block.

    Kills: blocks that outlive what they lie in.
    """
    provider, dtype = _provider(exam), exam.capability.kv.dtypes[0]
    block = provider.kv_block_alloc(3, dtype)
    provider.close()
    for call, arguments in (
        (provider.kv_block_alloc, (3, dtype)),
        (provider.kv_block_copy, (block, block)),
        (provider.kv_block_migrate, (block, provider.device)),
    ):
        exam.refuses(UnavailableError, call, *arguments, says=("closed",))


def _provider(exam: Exam) -> BackendProvider:
    return exam.make(kv_layout=layout_for(exam.capability), kv_blocks=BLOCKS)


def _find(provider: BackendProvider, block: KVBlock) -> tuple[KVPool, Any]:
    return provider._tokens.find(block)  # noqa: SLF001 - see the module's text


def _fill(exam: Exam, provider: BackendProvider, block: KVBlock) -> Pages:
    """Write random bits into the pages of one block, and return them."""
    pool, ids = _find(provider, block)
    pages = read(provider, pool)
    shape = pages_shape(pool)
    pages[:, :, ids] = exam.fill((*shape[:2], len(ids), *shape[3:]), pool.layout.dtype)
    write(provider, pool, pages)
    return pages[:, :, ids]


def _contents(provider: BackendProvider, block: KVBlock) -> Pages:
    pool, ids = _find(provider, block)
    return np.ascontiguousarray(read(provider, pool)[:, :, ids])


def _forged(block: KVBlock) -> Iterator[Any]:
    change = dataclasses.replace
    yield from (None, block.handle, "block", object())
    yield change(block, handle=block.handle + 1_000_000)
    yield change(block, handle=-1)
    yield change(block, handle=str(block.handle))
    yield change(block, num_tokens=block.num_tokens + 1)
    yield change(block, device="elsewhere:7")
    yield change(block, dtype=DType.INT64)


def _refused_everywhere(exam: Exam, provider: BackendProvider, bad: Any, good: KVBlock) -> None:
    for call, arguments in (
        (provider.kv_block_free, (bad,)),
        (provider.kv_block_copy, (bad, good)),
        (provider.kv_block_copy, (good, bad)),
        (provider.kv_block_migrate, (bad, provider.device)),
    ):
        exam.refuses(InvalidArgumentError, call, *arguments)
