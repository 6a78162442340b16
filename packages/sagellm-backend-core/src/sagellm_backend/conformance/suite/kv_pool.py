"""KV pools: storage that looks as its layout says, is accounted for, and is refused when gone."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import (
    KEYS,
    VALUES,
    block_sizes,
    expect,
    fill,
    kv_dtypes,
    kv_orders,
    kv_packings,
    layout_for,
    locations,
    read,
    write,
    written_dtypes,
)
from sagellm_backend.dtypes import dtype_of
from sagellm_backend.errors import (
    InvalidArgumentError,
    OutOfMemoryError,
    UnavailableError,
)
from sagellm_backend.kv import KVLayout, KVPool

BLOCKS = 6
LAYOUTS = {"dtype": kv_dtypes, "order": kv_orders, "packing": kv_packings}


@case(
    "kv",
    requires=(Feature.KV_POOL,),
    params={**LAYOUTS, "block_size": block_sizes, "location": locations},
)
def caches_look_as_operations_see_them(exam: Exam) -> None:
    """Every cache is (blocks, block size, heads, head size) of the dtype, whatever its order.

    The order and the packing show in the strides, as far as native arrays have strides. Kills: the
    physical shape shown for the logical one, an order or packing that is ignored, and a wrong dtype.
    """
    pool = _pool(exam, block_size=exam["block_size"], location=exam["location"])
    layout = pool.layout
    wanted = (BLOCKS, layout.block_size, layout.num_kv_heads, layout.head_dim)
    exam.check(pool.nbytes == BLOCKS * layout.page_bytes, f"{layout} takes {pool.nbytes} bytes.")
    exam.check(pool.num_free == pool.num_blocks == BLOCKS, "A new pool is not free altogether.")
    for cache in _caches(pool):
        exam.check(tuple(cache.shape) == wanted, f"{layout} shows {cache.shape}, not {wanted}.")
        exam.check(dtype_of(cache) is layout.dtype, f"{layout} holds {cache.dtype}.")
        _check_strides(exam, layout, cache)
    for layer in (layout.num_layers, -1, None):
        exam.refuses(InvalidArgumentError, pool.key_cache, layer)
        exam.refuses(InvalidArgumentError, pool.value_cache, layer)


@case(
    "kv",
    requires=(Feature.KV_POOL,),
    params={**LAYOUTS, "location": locations},
)
def contents_stay_where_they_were_put(exam: Exam) -> None:
    """Every layer's keys and values hold their own bits; rewriting one leaves all others alone.

    Kills: layers, keys and values, or blocks that overlap, offsets that are ignored, and storage
    that changes bits on the way.
    """
    pool = _pool(exam, location=exam["location"])
    pages = fill(exam, pool)
    expect(exam, pool, pages, "A filled pool")
    other = _pool(exam, location=exam["location"])
    fill(exam, other)
    expect(exam, pool, pages, "After another pool was filled")
    fresh = exam.fill(pages.shape, pool.layout.dtype)
    for layer in range(pool.layout.num_layers):
        for kind in (KEYS, VALUES):
            pages[layer, kind] = fresh[layer, kind]
            write(exam.provider, pool, pages)
            expect(exam, pool, pages, f"After layer {layer} was rewritten")


@case(
    "kv",
    requires=(Feature.KV_POOL,),
    params={"dtype": written_dtypes, "order": kv_orders, "packing": kv_packings},
)
def kernels_write_one_slot_for_each_token(exam: Exam) -> None:
    """kv_write puts each token into its slot of its layer, skips -1, and touches no other slot.

    Kills: slots counted in the physical order, a last slot written for -1, offsets within a block
    that are ignored, and keys written to the values or to another layer.
    """
    provider, pool = exam.provider, _pool(exam)
    pages, layout = fill(exam, pool), pool.layout
    kernel = provider.get_kernel("kv_write", dtype=layout.dtype)
    slots = exam.rng.permutation(BLOCKS * layout.block_size)[:9].astype(layout.index_dtype.numpy)
    slots[[1, 5]] = -1
    used = slots >= 0
    where = np.divmod(slots[used], layout.block_size)
    for layer in range(layout.num_layers):
        tokens = exam.fill((2, 9, layout.num_kv_heads, layout.head_dim), layout.dtype)
        key, value = (provider.from_numpy(part) for part in tokens)
        caches = pool.key_cache(layer), pool.value_cache(layer)
        kernel(key, value, *caches, provider.from_numpy(slots))
        pages[layer, KEYS][where] = tokens[KEYS][used]
        pages[layer, VALUES][where] = tokens[VALUES][used]
        expect(exam, pool, pages, f"After kv_write to layer {layer}")


@case(
    "kv",
    requires=(Feature.KV_POOL,),
    params={"dtype": written_dtypes, "order": kv_orders},
    needs=lambda capability: (
        None if "attention" in capability.operations else "attention is not declared"
    ),
)
def free_blocks_never_reach_attention(exam: Exam) -> None:
    """Attention over a pool reads the tokens of its sequences and nothing of what is NaN around.

    Kills: NaN of free blocks or unused slots that leaks, a block table that is ignored, and a
    block that is read from where it lay before.
    """
    provider, pool = exam.provider, _pool(exam)
    dtype, size, layer = pool.layout.dtype, pool.layout.block_size, pool.layout.num_layers - 1
    shape = (len(read(provider, pool)), 2, BLOCKS, size, pool.layout.num_kv_heads, 16)
    write(provider, pool, np.full(shape, np.nan, dtype.numpy))
    first, second = pool.alloc(2), pool.alloc(2)
    pool.free(first)
    table = [second[::-1].tolist(), pool.alloc(1).tolist()]
    lengths = [size + 1, size - 1]
    metadata = provider.attention_metadata(lengths, lengths, table, size)
    tokens = exam.rng.standard_normal((3, sum(lengths), 2, 16)).astype(dtype.numpy)
    q, k, v = (provider.from_numpy(part) for part in tokens)
    caches = pool.key_cache(layer), pool.value_cache(layer)
    slots = provider.from_numpy(metadata.slots())
    provider.get_kernel("kv_write", dtype=dtype)(k, v, *caches, slots)
    attention = provider.get_kernel("attention", dtype=dtype)
    got = provider.to_numpy(attention(q, *caches, metadata, scale=0.25)).astype(np.float64)
    exam.check(np.isfinite(got).all(), "NaN of blocks that hold no token came out of attention.")
    ragged = provider.attention_metadata(lengths)
    wanted = provider.to_numpy(attention(q, k, v, ragged, scale=0.25)).astype(np.float64)
    error = float(np.abs(got - wanted).max())
    exam.check(
        error <= 16 * dtype.unit_roundoff,
        f"Attention over the pool is {error:.2g} from that over the same keys in one piece.",
    )


@case("kv", requires=(Feature.KV_POOL,), params={"location": locations})
def pools_are_accounted_for(exam: Exam) -> None:
    """A pool counts as its bytes of KV memory until it is closed or collected, and only once.

    Kills: statistics that never fall, pools that are not counted or counted twice, a second close
    that is counted, and memory that is kept when a pool is forgotten.
    """
    provider, layout = exam.provider, layout_for(exam.capability)
    place = exam["location"]
    before = provider.memory_stats(place)
    pool = provider.kv_pool(layout, BLOCKS, place)
    _grown(exam, before, pool.nbytes, "one pool", place)
    with provider.kv_pool(layout, 2 * BLOCKS, place) as second:
        _grown(exam, before, pool.nbytes + second.nbytes, "two pools", place)
        second.alloc(3)
    _grown(exam, before, pool.nbytes, "one pool after the other was closed", place)
    second.close()
    _grown(exam, before, pool.nbytes, "one pool after the other was closed twice", place)
    del pool
    gc.collect()
    _grown(exam, before, 0, "no pool after the last was collected", place)


@case("kv", requires=(Feature.KV_POOL,))
def memory_that_is_not_there_is_refused(exam: Exam) -> None:
    """A pool over the limit is refused with requested and free bytes, and the next that fits is made.

    Kills: a limit that is not enforced, memory lost by a refusal, and an untyped failure.
    """
    layout = layout_for(exam.capability)
    limit = 3 * layout.nbytes(BLOCKS)
    provider = exam.make(memory_limit=limit)
    with provider.kv_pool(layout, BLOCKS):
        error = exam.refuses(OutOfMemoryError, provider.kv_pool, layout, 2 * BLOCKS + 1)
        numbers = error.numbers
        exam.check(
            numbers.get("requested") == layout.nbytes(2 * BLOCKS + 1)
            and numbers.get("free") == 2 * layout.nbytes(BLOCKS),
            f"The refusal says {numbers}.",
        )
        exam.check(provider.memory_stats()["kv_bytes"] == layout.nbytes(BLOCKS), "It was charged.")
        provider.kv_pool(layout, 2 * BLOCKS).close()
    whole = provider.kv_pool(layout, 3 * BLOCKS)
    expect(exam, whole, fill(exam, whole, provider), "A pool of the whole limit", provider)
    exam.refuses(OutOfMemoryError, provider.kv_pool, layout, 1)


@case("kv", requires=(Feature.KV_POOL,), params={"location": locations})
def closed_pools_refuse_everything(exam: Exam) -> None:
    """A pool that was closed, or whose provider was, does nothing any more and says so.

    Kills: ids and caches that outlive their storage.
    """
    pool = _pool(exam, location=exam["location"])
    ids = pool.alloc(2)
    pool.close()
    for call, arguments in (
        (pool.alloc, (1,)),
        (pool.alloc_tokens, (1,)),
        (pool.retain, (ids,)),
        (pool.free, (ids,)),
        (pool.references, (ids,)),
        (pool.key_cache, (0,)),
        (pool.value_cache, (0,)),
    ):
        exam.refuses(UnavailableError, call, *arguments, says=("closed",))
    provider = exam.make()
    provider.close()
    exam.refuses(UnavailableError, provider.kv_pool, pool.layout, 1, says=("closed",))


def _pool(exam: Exam, *, block_size: int | None = None, location: str = "device") -> KVPool:
    values = exam.case.values
    layout = layout_for(
        exam.capability,
        values.get("dtype"),
        order=values.get("order"),
        packing=values.get("packing"),
        block_size=block_size,
    )
    return exam.provider.kv_pool(layout, BLOCKS, location)


def _caches(pool: KVPool) -> Iterator[Any]:
    for layer in range(pool.layout.num_layers):
        yield pool.key_cache(layer)
        yield pool.value_cache(layer)


def _check_strides(exam: Exam, layout: KVLayout, cache: Any) -> None:
    """Compare strides with each other: frameworks count them in bytes or in elements."""
    strides = getattr(cache, "strides", None) or getattr(cache, "stride", lambda: None)()
    if strides is None or layout.block_size == 1:
        return
    block, token, head, _ = strides
    order = "NHD" if token > head else "HND"
    exam.check(order == layout.order, f"{layout} lies in memory as {order}: strides {strides}.")
    rows = layout.block_size if order == "NHD" else layout.num_kv_heads
    apart = block // (max(token, head) * rows)
    wanted = 1 if layout.packing == "separate" else 2
    exam.check(apart == wanted, f"Blocks of {layout} are {apart} blocks apart, not {wanted}.")


def _grown(exam: Exam, before: Any, nbytes: int, what: str, place: str) -> None:
    now = exam.provider.memory_stats(place)
    for name in ("kv_bytes", "allocated_bytes"):
        change = now[name] - before[name]
        exam.check(change == nbytes, f"{name} grew by {change} for {what} of {nbytes} bytes.")
