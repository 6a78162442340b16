"""Copies of KV blocks: what arrives, what stays, and what is refused before anything moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import (
    Pages,
    expect,
    fill,
    kv_dtypes,
    kv_orders,
    kv_packings,
    layout_for,
)
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, UnavailableError
from sagellm_backend.kv import KVLayout, KVPool, Transfer

BLOCKS = 24
WAIT_S = 30.0


def routes(capability: CapabilityDescriptor) -> Iterator[str]:
    """Every pair of places that copies are declared between."""
    yield from ("within", "device-to-device")
    if Feature.KV_HOST_POOL in capability.features:
        yield from ("device-to-host", "host-to-device", "host-to-host")
    if Feature.KV_PEER_COPY in capability.features and len(capability.devices) > 1:
        yield from ("device-to-peer", "peer-to-device")


def all_routes(capability: CapabilityDescriptor) -> tuple[str, ...]:
    """The routes as values of a parameter."""
    return tuple(routes(capability))


@case("kv", requires=(Feature.KV_POOL,), params={"route": all_routes, "dtype": kv_dtypes})
def copies_are_exact_and_touch_nothing_else(exam: Exam) -> None:
    """Many blocks at random places arrive bit for bit; every other block of both pools stays.

    Kills: a last byte that is dropped, offsets or ids that are ignored, pairs in another order,
    a layer or the values left behind, bits that change on the way, and blocks beside the target.
    """
    for order in kv_orders(exam.capability):
        for packing in kv_packings(exam.capability):
            layout = layout_for(exam.capability, exam["dtype"], order=order, packing=packing)
            source, target = _pools(exam, layout, exam["route"])
            _copy_and_expect(exam, source, target)
            source.close()
            target.close()


@case("kv", requires=(Feature.KV_POOL,), params={"route": all_routes})
def a_plan_moves_the_way_it_says(exam: Exam) -> None:
    """A plan and the plan with its pools exchanged move opposite ways, as their direction says.

    Kills: a direction that is guessed from the pointers or fixed, and source and target exchanged.
    """
    source, target = _pools(exam, layout_for(exam.capability), exam["route"])
    plan = exam.provider.kv_copy_plan(source, target)
    back = exam.provider.kv_copy_plan(target, source)
    for made, one, other in ((plan, source, target), (back, target, source)):
        wanted = f"{one.location}-to-{other.location}"
        exam.check(made.direction == wanted, f"{wanted} says {made.direction}.")
        exam.check(made.source is one and made.target is other, "A plan names other pools.")
    ids, theirs = source.alloc(2), target.alloc(2)
    here = fill(exam, source)
    there = here if target is source else fill(exam, target)
    plan.copy(ids[:1], theirs[:1])
    there[:, :, theirs[0]] = here[:, :, ids[0]]
    back.copy(theirs[1:], ids[1:])
    here[:, :, ids[1]] = there[:, :, theirs[1]]
    expect(exam, source, here, "The source of a plan and target of the other")
    expect(exam, target, there, "The target of a plan and source of the other")


@case("kv", requires=(Feature.KV_POOL,), params={"route": all_routes})
def bad_batches_move_nothing(exam: Exam) -> None:
    """What cannot be copied as asked is refused before any block of the batch has moved.

    Kills: a batch that is copied up to its bad member, and unequal, repeated, overlapping, free or
    unknown blocks taken as they are. An empty batch moves nothing and is done.
    """
    source, target = _pools(exam, layout_for(exam.capability), exam["route"])
    ids, theirs = source.alloc(4).tolist(), target.alloc(4).tolist()
    wanted = fill(exam, source)
    there = wanted if target is source else fill(exam, target)
    plan = exam.provider.kv_copy_plan(source, target)
    gone, missing = source.alloc(1).tolist(), target.alloc(1).tolist()
    source.free(gone)
    target.free(missing)
    bad = [
        (ids, theirs[:3]),
        (ids[:1], []),
        ([ids[0], ids[0]], theirs[:2]),
        (ids[:2], [theirs[1], theirs[1]]),
        ([ids[0], *gone], theirs[:2]),
        (ids[:2], [theirs[0], *missing]),
        ([ids[0], BLOCKS], theirs[:2]),
        (ids[:2], [theirs[0], -1]),
        ([float(ids[0])], theirs[:1]),
        (None, theirs),
    ]
    if target is source:
        bad += [(ids[:2], ids[1:3]), (ids[:1], ids[:1])]
    for from_ids, to_ids in bad:
        exam.refuses(InvalidArgumentError, plan.copy, from_ids, to_ids)
    empty = plan.copy([], [])
    empty.wait()
    exam.check(empty.done() and empty.num_blocks == 0, "An empty batch is not done at once.")
    exam.refuses(InvalidArgumentError, plan.copy, ids[:1], theirs[:1], "stream")
    expect(exam, source, wanted, "The source after refused copies")
    expect(exam, target, there, "The target after refused copies")
    target.close()
    exam.refuses(UnavailableError, plan.copy, ids[:1], theirs[:1], says=("closed",))
    source.close()
    exam.refuses(UnavailableError, plan.copy, [], [], says=("closed",))


@case("kv", requires=(Feature.KV_POOL,))
def pools_that_do_not_match_are_refused(exam: Exam) -> None:
    """No plan is made between pools of other layouts or other providers; alignment may differ.

    Kills: bytes reinterpreted in another dtype or order, and pools of a stranger.
    """
    provider, plain = exam.provider, layout_for(exam.capability)
    pool = provider.kv_pool(plain, 2)
    for layout in _different(exam.capability, plain):
        with provider.kv_pool(layout, 2) as other:
            for pools in ((pool, other), (other, pool)):
                exam.refuses(InvalidArgumentError, provider.kv_copy_plan, *pools, says=("differ",))
    stranger = exam.make().kv_pool(plain, 2)
    for ends in ((pool, stranger), (stranger, pool), (pool, None), ("pool", pool)):
        exam.refuses(InvalidArgumentError, provider.kv_copy_plan, *ends)
    with provider.kv_pool(replace(plain, alignment=1), BLOCKS) as loose:
        other = provider.kv_pool(plain, BLOCKS)
        _copy_and_expect(exam, loose, other)


@case("kv", requires=(Feature.KV_POOL, Feature.KV_HOST_POOL), params={"dtype": kv_dtypes})
def swapped_blocks_come_back_as_they_were(exam: Exam) -> None:
    """Blocks that were swapped out, overwritten and swapped in to other places are the same bits.

    Kills: a swap that keeps no copy of its own, and stale blocks after one.
    """
    layout = layout_for(exam.capability, exam["dtype"])
    pool = exam.provider.kv_pool(layout, BLOCKS)
    host = exam.provider.kv_pool(layout, BLOCKS // 2, "host")
    swap_out = exam.provider.kv_copy_plan(pool, host)
    swap_in = exam.provider.kv_copy_plan(host, pool)
    for _ in range(3):
        ids, kept = pool.alloc(7), host.alloc(7)
        saved = fill(exam, pool)[:, :, ids]
        swap_out.copy(ids, kept).wait(WAIT_S)
        pool.free(ids)
        pages = fill(exam, pool)
        back = pool.alloc(12)[::-2].copy()[:6]
        swap_in.copy(kept[:6], back).wait(WAIT_S)
        pages[:, :, back] = saved[:, :, :6]
        expect(exam, pool, pages, "After swapping out and in")
        pool.free([block for block in range(BLOCKS) if pool.references([block])[0]])
        host.free(kept)


@case("kv", requires=(Feature.KV_POOL,))
def plans_do_not_disturb_each_other(exam: Exam) -> None:
    """Plans of several pools are used in turn and in any order, each between its own pools.

    Kills: addresses or directions that are kept for the last plan only.
    """
    layout = layout_for(exam.capability)
    pools = [exam.provider.kv_pool(layout, BLOCKS) for _ in range(3)]
    contents = [fill(exam, pool) for pool in pools]
    ids = [pool.alloc(BLOCKS) for pool in pools]
    order = [(0, 1), (1, 2), (2, 0), (1, 0)]
    plans = {pair: exam.provider.kv_copy_plan(pools[pair[0]], pools[pair[1]]) for pair in order}
    for turn, (one, other) in enumerate(order + order[::-1]):
        sources, targets = ids[one][turn : turn + 5], ids[other][turn + 6 : turn + 11]
        plans[one, other].copy(sources, targets).wait(WAIT_S)
        contents[other][:, :, targets] = contents[one][:, :, sources]
    for pool, wanted in zip(pools, contents, strict=True):
        expect(exam, pool, wanted, "After copies by four plans in turn")


@case("kv", requires=(Feature.KV_POOL,), without=Feature.KV_PEER_COPY, devices=2)
def absent_peer_copies_are_refused(exam: Exam) -> None:
    """Without a claim of copies between devices a plan for them is refused by a CapabilityError.

    Kills: a plan that would move nothing, or through the host unasked.
    """
    layout = layout_for(exam.capability)
    pool, other = (exam.provider.kv_pool(layout, 2, place) for place in _two_devices(exam))
    exam.refuses(CapabilityError, exam.provider.kv_copy_plan, pool, other, says=("kv_peer_copy",))


def _two_devices(exam: Exam) -> tuple[str, str]:
    return exam.provider.device, f"{exam.capability.device_type}:1"


def _pools(exam: Exam, layout: KVLayout, route: str) -> tuple[KVPool, KVPool]:
    if route == "within":
        pool = exam.provider.kv_pool(layout, BLOCKS)
        return pool, pool
    one, _, other = route.partition("-to-")
    return _pool(exam.provider, layout, one), _pool(exam.provider, layout, other)


def _pool(provider: BackendProvider, layout: KVLayout, word: str) -> KVPool:
    place = f"{provider.device_type}:1" if word == "peer" else word
    return provider.kv_pool(layout, BLOCKS, place)


def _copy_and_expect(exam: Exam, source: KVPool, target: KVPool) -> None:
    """Copy a random batch, then another in which runs of neighbours occur."""
    held, theirs = source.alloc(BLOCKS), target.alloc(0 if target is source else BLOCKS)
    pages = fill(exam, source)
    there = pages if target is source else fill(exam, target)
    plan = exam.provider.kv_copy_plan(source, target)
    for batch in (
        exam.rng.permutation(BLOCKS),
        np.r_[4:8, 20:24, 11, 2:4, 0, 12:20:2, 1, 13, 8:11, 15, 17, 19],
    ):
        half = BLOCKS // 2
        from_ids = held[batch[:half]]
        to_ids = held[batch[half:]] if target is source else theirs[np.roll(batch, 3)[:half]]
        transfer = plan.copy(from_ids, to_ids)
        _check_transfer(exam, transfer, half, half * source.layout.page_bytes)
        there[:, :, to_ids] = pages[:, :, from_ids]
        _expect_both(exam, (source, pages), (target, there))


def _check_transfer(exam: Exam, transfer: Transfer, blocks: int, nbytes: int) -> None:
    exam.check(transfer.done(), "A copy without a stream is not done on return.")
    transfer.wait(WAIT_S)
    exam.check(
        (transfer.num_blocks, transfer.nbytes) == (blocks, nbytes),
        f"A copy of {blocks} blocks says {transfer.num_blocks} blocks, {transfer.nbytes} bytes.",
    )
    exam.refuses(InvalidArgumentError, transfer.wait, 0)


def _expect_both(exam: Exam, *pools: tuple[KVPool, Pages]) -> None:
    for pool, wanted in pools:
        expect(exam, pool, wanted, f"After copying, the {pool.location} pool")


def _different(capability: CapabilityDescriptor, plain: KVLayout) -> Iterator[KVLayout]:
    kv = capability.kv
    for dtype in kv.dtypes[1:3]:
        yield layout_for(capability, dtype)
    for order in kv.orders[1:]:
        yield layout_for(capability, order=order)
    for packing in kv.packings[1:]:
        yield layout_for(capability, packing=packing)
    yield replace(plain, num_layers=plain.num_layers + 1)
    yield replace(plain, head_dim=plain.head_dim * 2)
    yield replace(plain, num_kv_heads=plain.num_kv_heads * 2)
