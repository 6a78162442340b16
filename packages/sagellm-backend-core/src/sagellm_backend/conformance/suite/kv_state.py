"""Any history of a pool, against a model in a dictionary."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import fill, layout_for, read
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError

BLOCKS = 10
STEPS = 40
EXAMPLES = {"smoke": 20, "standard": 100, "stress": 1000}


@case("kv", requires=(Feature.KV_POOL,))
def any_history_of_a_pool_is_that_of_the_model(exam: Exam) -> None:
    """Random histories of alloc, retain, free, copies and swaps agree with a dictionary of blocks.

    After every step the free count, every reference and every bit of every held block are compared.
    Histories depend on the seed only; a failure is told by the shortest history that shows it.
    Kills: reference counts that are off by one, blocks that are lost or handed out twice, stale
    blocks after a swap, and copies that reach a block beside their target.
    """
    from hypothesis import HealthCheck, seed, settings
    from hypothesis.configuration import set_hypothesis_home_dir
    from hypothesis.stateful import run_state_machine_as_test

    chosen = settings(
        max_examples=EXAMPLES[exam.depth],
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    with tempfile.TemporaryDirectory() as home:  # Hypothesis would leave files where we are run
        set_hypothesis_home_dir(home)
        run_state_machine_as_test(seed(exam.seed)(_machine(exam)), settings=chosen)


class _Model:
    """A pool, its dictionary of block -> [references, contents], and a scratch pool of random bits."""

    def __init__(self, exam: Exam) -> None:
        self.exam, provider = exam, exam.provider
        layout = layout_for(exam.capability, layers=1, heads=1)
        self.pool, self.scratch = (provider.kv_pool(layout, BLOCKS) for _ in range(2))
        place = "host" if Feature.KV_HOST_POOL in exam.capability.features else "device"
        self.store = provider.kv_pool(layout, BLOCKS, place)
        self.bits = fill(exam, self.scratch)
        self.scratch.alloc(BLOCKS)
        self.store.alloc(BLOCKS)
        self.load = provider.kv_copy_plan(self.scratch, self.pool)
        self.swap_out = provider.kv_copy_plan(self.pool, self.store)
        self.swap_in = provider.kv_copy_plan(self.store, self.pool)
        self.within = provider.kv_copy_plan(self.pool, self.pool)
        self.held: dict[int, int] = {}
        self.contents: dict[int, Any] = {}
        self.stored: dict[int, Any] = {}

    def close(self) -> None:
        for pool in (self.pool, self.scratch, self.store):
            pool.close()

    def alloc(self, count: int) -> None:
        if count > BLOCKS - len(self.held):
            self.exam.refuses(OutOfMemoryError, self.pool.alloc, count)
            return
        ids = self.pool.alloc(count).tolist()
        twice = set(ids) & set(self.held)
        self.exam.check(not twice and len(set(ids)) == count, f"alloc({count}) gave {ids}.")
        self.held.update(dict.fromkeys(ids, 1))

    def retain(self, ids: list[int]) -> None:
        if not all(block in self.held for block in ids):
            self.exam.refuses(InvalidArgumentError, self.pool.retain, ids)
            return
        self.pool.retain(ids)
        for block in ids:
            self.held[block] += 1

    def free(self, ids: list[int]) -> None:
        if not all(block in self.held for block in ids):
            self.exam.refuses(InvalidArgumentError, self.pool.free, ids)
            return
        gone = [block for block in ids if self.held[block] == 1]
        count = self.pool.free(ids)
        self.exam.check(count == len(gone), f"free({ids}) freed {count} blocks, not {len(gone)}.")
        for block in ids:
            self.held[block] -= 1
        for block in gone:
            del self.held[block]
            self.contents.pop(block, None)

    def copy_in(self, ids: list[int], sources: list[int]) -> None:
        if self._refused(self.load, sources, ids, ids):
            return
        self.load.copy(sources, ids)
        for source, block in zip(sources, ids, strict=True):
            self.contents[block] = self.bits[:, :, source]

    def copy_within(self, sources: list[int], ids: list[int]) -> None:
        if set(sources) & set(ids) or self._refused(self.within, sources, ids, sources + ids):
            return
        self.within.copy(sources, ids)
        self._carry(self.contents, sources, self.contents, ids)

    def swap(self, ids: list[int], places: list[int], *, out: bool) -> None:
        plan = self.swap_out if out else self.swap_in
        pair = (ids, places) if out else (places, ids)
        if self._refused(plan, *pair, ids):
            return
        plan.copy(*pair)
        if out:
            self._carry(self.contents, ids, self.stored, places)
        else:
            self._carry(self.stored, places, self.contents, ids)

    def _refused(self, plan: Any, sources: list[int], targets: list[int], own: list[int]) -> bool:
        if all(block in self.held for block in own):
            return False
        self.exam.refuses(InvalidArgumentError, plan.copy, sources, targets)
        return True

    @staticmethod
    def _carry(
        source: dict[int, Any], from_ids: list[int], target: dict[int, Any], to_ids: list[int]
    ) -> None:
        moved = [source.get(block) for block in from_ids]
        for block, contents in zip(to_ids, moved, strict=True):
            target.pop(block, None)
            if contents is not None:  # nothing was ever written to the source
                target[block] = contents

    def compare(self) -> None:
        free = BLOCKS - len(self.held)
        self.exam.check(self.pool.num_free == free, f"{self.pool.num_free} free, not {free}.")
        counts = self.pool.references(list(range(BLOCKS))).tolist()
        wanted = [self.held.get(block, 0) for block in range(BLOCKS)]
        self.exam.check(counts == wanted, f"References are {counts}, wanted {wanted}.")
        for pool, known in ((self.pool, self.contents), (self.store, self.stored)):
            ids = sorted(known)
            if ids:
                found = read(self.exam.provider, pool)[:, :, ids]
                expected = np.stack([known[block] for block in ids], axis=2)
                self.exam.equal_bits(found, expected, f"Blocks {ids} of the {pool.location} pool")


def _machine(exam: Exam) -> Any:
    """The rules by which Hypothesis makes histories of a :class:`_Model`."""
    from hypothesis import strategies as some
    from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

    blocks = some.lists(some.integers(0, BLOCKS - 1), unique=True, max_size=4)
    pairs = some.lists(
        some.tuples(some.integers(0, BLOCKS - 1), some.integers(0, BLOCKS - 1)),
        unique_by=(lambda pair: pair[0], lambda pair: pair[1]),
        min_size=1,
        max_size=4,
    )

    class History(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.model = _Model(exam)

        @rule(count=some.integers(0, BLOCKS // 2))
        def alloc(self, count: int) -> None:
            self.model.alloc(count)

        @rule(ids=blocks)
        def retain(self, ids: list[int]) -> None:
            self.model.retain(ids)

        @rule(ids=blocks)
        def free(self, ids: list[int]) -> None:
            self.model.free(ids)

        @rule(pairs=pairs)
        def copy_in(self, pairs: list[tuple[int, int]]) -> None:
            self.model.copy_in([one for one, _ in pairs], [other for _, other in pairs])

        @rule(pairs=pairs)
        def copy_within(self, pairs: list[tuple[int, int]]) -> None:
            self.model.copy_within([one for one, _ in pairs], [other for _, other in pairs])

        @rule(pairs=pairs, out=some.booleans())
        def swap(self, pairs: list[tuple[int, int]], *, out: bool) -> None:
            self.model.swap([one for one, _ in pairs], [other for _, other in pairs], out=out)

        @invariant()
        def is_the_model(self) -> None:
            self.model.compare()

        def teardown(self) -> None:
            self.model.close()

    return History
