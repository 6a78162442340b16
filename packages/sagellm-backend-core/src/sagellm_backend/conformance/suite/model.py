"""A whole decoder: its tokens are those of the float64 references, whatever the scheduling.

Margins are made wide, not hoped for: prompts are drawn until the float64 decoder leads by
``MARGIN`` deviations of the logits in every choice, and the backend's logits must be within half of
that of its own. A wrong key among some dozens moves them further.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.llama import BackendDecoder, Running, Weights, model_dtypes
from sagellm_backend.conformance.pages import block_size_for, kv_orders, layout_for
from sagellm_backend.conformance.tiny_llama import (
    TINY,
    Story,
    find_story,
    find_weights,
    make_weights,
)
from sagellm_backend.dtypes import DType
from sagellm_backend.kv import KVPool

STEPS = 6
MARGIN = {DType.FP32: 0.002, DType.FP16: 0.03, DType.BF16: 0.25}
POOL = (Feature.KV_POOL,)


def _computed(capability: CapabilityDescriptor) -> str | None:
    return None if model_dtypes(capability) else "no dtype has every operation of the decoder"


@case("model", requires=POOL, params={"dtype": model_dtypes, "order": kv_orders}, needs=_computed)
def tokens_are_those_of_the_reference(exam: Exam) -> None:
    """Sequences that join and leave a running batch get the tokens of the float64 decoder.

    Prompts end before, at and behind the edges of blocks; blocks of those that left are used anew.
    Kills: any wrong kernel of those that a decoder needs, heads of grouped attention that read
    other keys, a stale block, positions that start anew, and metadata kept from the step before.
    """
    size = block_size_for(exam.capability)
    lengths = (size - 1 or 2, max(size, 2), size + 1, 5, 2 * size + 1)
    weights, shortest = find_weights(exam.rng, exam["dtype"], 1, STEPS, MARGIN[exam["dtype"]])
    told = [shortest, *(_story(exam, weights, length) for length in lengths)]
    pool = _pool(exam, 3 * (max(lengths) + STEPS))
    decoder = BackendDecoder(exam.provider, TINY, weights, exam["dtype"])
    waiting = deque(enumerate(told))
    running: dict[int, Running] = {}
    while waiting or running:
        if waiting and len(running) < 3:
            number, story = waiting.popleft()
            running[number] = Running(list(story.prompt))
        _step(exam, decoder, pool, dict(enumerate(told)), running)
    exam.check(pool.num_free == pool.num_blocks, "Blocks are held after the last sequence.")


@case("model", requires=POOL, params={"dtype": model_dtypes}, needs=_computed)
def a_shared_prefix_is_copied_before_appending(exam: Exam) -> None:
    """Two sequences share the blocks of a prompt; the open one is copied, and each goes its way.

    Kills: a copy of blocks that misses a layer or goes the other way, and a prefix that one
    sequence overwrites for the other.
    """
    length = max(block_size_for(exam.capability) * 3 // 2, 2)
    weights = make_weights(exam.rng, exam["dtype"])
    first = _story(exam, weights, length)
    second = _story(exam, weights, length + 3, first)
    pool = _pool(exam, 3 * (length + 3 + STEPS))
    decoder = BackendDecoder(exam.provider, TINY, weights, exam["dtype"])
    running = {0: Running(list(first.prompt))}
    _step(exam, decoder, pool, {0: first}, running)
    running[1] = _fork(exam, pool, running[0], first, second)
    while running:
        _step(exam, decoder, pool, {0: first, 1: second}, running)
    exam.check(pool.num_free == pool.num_blocks, "Blocks are held after both sequences.")


@case(
    "model",
    requires=(*POOL, Feature.KV_HOST_POOL),
    params={"dtype": model_dtypes},
    needs=_computed,
)
def a_preempted_sequence_goes_on_after_swapping(exam: Exam) -> None:
    """A sequence whose blocks were swapped out, given to another, and swapped in gets its tokens.

    Kills: a swap that loses a layer or a block, and attention that reads where a block lay before.
    """
    size = block_size_for(exam.capability)
    weights = make_weights(exam.rng, exam["dtype"])
    told = {number: _story(exam, weights, 2 * size + 1 + number) for number in range(2)}
    pool = _pool(exam, 2 * size + 2 + STEPS)
    host = _pool(exam, 2 * size + 2 + STEPS, "host")
    decoder = BackendDecoder(exam.provider, TINY, weights, exam["dtype"])
    swap_out, swap_in = (exam.provider.kv_copy_plan(*pair) for pair in ((pool, host), (host, pool)))
    running = {0: Running(list(told[0].prompt))}
    for _ in range(STEPS // 2):
        _step(exam, decoder, pool, told, running)
    away = running.pop(0)
    kept = host.alloc(len(away.blocks))
    swap_out.copy(away.blocks, kept).wait()
    pool.free(away.blocks)
    running[1] = Running(list(told[1].prompt))
    while running:
        _step(exam, decoder, pool, told, running)
    away.blocks = pool.alloc(len(kept))[::-1].tolist()
    swap_in.copy(kept, away.blocks).wait()
    running[0] = away
    while running:
        _step(exam, decoder, pool, told, running)


def _story(exam: Exam, weights: Weights, length: int, before: Story | None = None) -> Story:
    prefix = before.prompt if before else ()
    length = min(length, TINY.positions - STEPS)
    return find_story(exam.rng, weights, length, STEPS, MARGIN[exam["dtype"]], prefix)


def _pool(exam: Exam, tokens: int, location: str = "device") -> KVPool:
    """A pool that holds that many tokens and no more, with a block of room for each sequence."""
    layout = layout_for(
        exam.capability,
        exam["dtype"],
        order=exam.case.values.get("order"),
        block_size=block_size_for(exam.capability),
        layers=TINY.layers,
        heads=TINY.kv_heads,
        head_dim=TINY.head_dim,
    )
    return exam.provider.kv_pool(layout, layout.blocks_for(tokens) + 2, location)


def _fork(exam: Exam, pool: KVPool, parent: Running, first: Story, second: Story) -> Running:
    """A second sequence after the prompt of ``parent``, which has one token more already."""
    blocks = parent.blocks[: pool.layout.blocks_for(len(first.prompt))]
    pool.retain(blocks)
    open_block, own = blocks[-1:], pool.alloc(1)
    exam.provider.kv_copy_plan(pool, pool).copy(open_block, own).wait()
    pool.free(open_block)
    return Running(list(second.prompt), len(first.prompt), [*blocks[:-1], int(own[0])])


def _step(
    exam: Exam,
    decoder: BackendDecoder,
    pool: KVPool,
    told: Mapping[int, Story],
    running: dict[int, Running],
) -> None:
    """One step of all running sequences, compared with their stories; those that ended leave."""
    for item in running.values():
        item.grow(pool)
    logits, best = decoder.step(list(running.values()), pool)
    for row, token, (number, item) in zip(logits, best, list(running.items()), strict=True):
        story = told[number]
        turn = len(item.tokens) - len(story.prompt)
        wanted = story.logits[turn]
        error = float(np.abs(row - wanted).max() / wanted.std())
        exam.measure("logit_error", max(error, exam.metrics.get("logit_error", 0.0)))
        where = f"token {turn} behind {len(story.prompt)}"
        allowed = MARGIN[exam["dtype"]] / 2
        exam.check(error <= allowed, f"Logits of {where} are off by {error:.3g}, not {allowed}.")
        exam.check(
            int(token) == story.tokens[turn],
            f"{where.capitalize()} is {token}, the float64 decoder's is {story.tokens[turn]}.",
        )
        item.tokens.append(int(token))
        if turn + 1 == len(story.tokens):
            pool.free(running.pop(number).blocks)
