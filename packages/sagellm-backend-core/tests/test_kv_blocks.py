"""Block ids against a model: a dict of reference counts says what every call must do."""

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError
from sagellm_backend.kv import BlockAllocator

JUNK_COUNTS = [None, True, 1.0, float("nan"), "1", [1], -1, 2**63, -(2**63), 10**400, object()]
JUNK_IDS = [
    None,
    0,
    "0",
    b"0",
    {0},
    [0.0],
    [float("nan")],
    [None],
    [True],
    [-1],
    [2**64],
    [[0]],
    np.array([0.0]),
    np.array([True]),
    np.array(0),
    np.array([[0]]),
    range(10**30),
    object(),
]


def _forms(ids):
    """The same ids as every type that is accepted."""
    return (ids, tuple(ids), np.array(ids, np.int32), np.array(ids, np.int64))


class AllocatorMachine(RuleBasedStateMachine):
    """``held`` maps each block that is out to its references; all others are free."""

    @initialize(size=st.integers(1, 24))
    def make(self, size):
        self.size = size
        self.allocator = BlockAllocator(size)
        self.held: dict[int, int] = {}

    @rule(count=st.integers(0, 30))
    def alloc(self, count):
        free = self.size - len(self.held)
        if count > free:
            with pytest.raises(OutOfMemoryError) as caught:
                self.allocator.alloc(count)
            assert caught.value.numbers == {"requested": count, "free": free, "limit": self.size}
            return
        ids = self.allocator.alloc(count)
        assert ids.dtype == np.int32
        assert ids.shape == (count,)
        fresh = ids.tolist()
        assert len(set(fresh)) == count
        assert not self.held.keys() & set(fresh)
        assert all(0 <= block < self.size for block in fresh)
        self.held.update(dict.fromkeys(fresh, 1))
        ids[:] = -7  # the caller owns the array: the allocator must not see this

    @rule(data=st.data(), form=st.integers(0, 3))
    def free(self, data, form):
        ids = data.draw(self._some_held())
        gone = [block for block in ids if self.held[block] == 1]
        assert self.allocator.free(_forms(ids)[form]) == len(gone)
        for block in ids:
            self.held[block] -= 1
        self.held = {block: count for block, count in self.held.items() if count}

    @rule(data=st.data(), form=st.integers(0, 3))
    def retain(self, data, form):
        ids = data.draw(self._some_held())
        self.allocator.retain(_forms(ids)[form])
        for block in ids:
            self.held[block] += 1

    @rule(data=st.data())
    def require_held(self, data):
        ids = data.draw(self._some_held())
        checked = self.allocator.require_held(ids)
        assert checked.dtype == np.int64
        assert checked.tolist() == ids

    @rule(data=st.data(), junk=st.sampled_from(JUNK_IDS))
    def refuse_junk(self, data, junk):
        for method in self._methods_on_held():
            with pytest.raises(InvalidArgumentError):
                method(junk)

    @rule(count=st.sampled_from(JUNK_COUNTS))
    def refuse_junk_counts(self, count):
        with pytest.raises(InvalidArgumentError):
            self.allocator.alloc(count)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def refuse_duplicates(self, data):
        ids = data.draw(self._some_held(least=1))
        twice = data.draw(st.permutations([*ids, ids[0]]))
        self._refused_everywhere(twice)

    @precondition(lambda self: len(self.held) < self.size)
    @rule(data=st.data())
    def refuse_blocks_that_are_free(self, data):
        stranger = data.draw(st.sampled_from(sorted(set(range(self.size)) - self.held.keys())))
        ids = data.draw(self._some_held())
        self._refused_everywhere(data.draw(st.permutations([*ids, stranger])))

    @rule(data=st.data(), outside=st.integers())
    def refuse_blocks_outside(self, data, outside):
        if not 0 <= outside < self.size:
            ids = data.draw(self._some_held())
            self._refused_everywhere([*ids, outside])

    @invariant()
    def agree_with_the_model(self):
        counts = self.allocator.references(range(self.size)).tolist()
        assert counts == [self.held.get(block, 0) for block in range(self.size)]
        assert self.allocator.num_free == self.size - len(self.held)
        assert self.allocator.num_blocks == self.size

    def teardown(self):
        """Whatever happened, the free list still holds every free block exactly once."""
        rest = self.allocator.alloc(self.allocator.num_free).tolist()
        assert sorted([*rest, *self.held]) == list(range(self.size))

    def _some_held(self, least=0):
        if not self.held:
            return st.just([])
        return st.lists(st.sampled_from(sorted(self.held)), unique=True, min_size=least)

    def _methods_on_held(self):
        return self.allocator.free, self.allocator.retain, self.allocator.require_held

    def _refused_everywhere(self, ids):
        for method in self._methods_on_held():
            with pytest.raises(InvalidArgumentError):
                method(ids)


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("size", [0, -1, 1 << 31, 1.0, True, None, "8"])
def test_a_pool_of_no_possible_size_is_refused(size):
    with pytest.raises(InvalidArgumentError):
        BlockAllocator(size)


def test_what_was_freed_last_is_handed_out_first():
    allocator = BlockAllocator(8)
    assert allocator.alloc(3).tolist() == [2, 1, 0]
    allocator.free([1])
    assert allocator.alloc(1).tolist() == [1]


def test_a_block_with_references_left_is_not_handed_out():
    allocator = BlockAllocator(1)
    ids = allocator.alloc(1)
    allocator.retain(ids)
    assert allocator.free(ids) == 0
    with pytest.raises(OutOfMemoryError):
        allocator.alloc(1)
    assert allocator.free(ids) == 1
    assert allocator.alloc(1).tolist() == ids.tolist()


def test_the_refusal_of_a_double_free_names_the_block_and_the_next_step():
    allocator = BlockAllocator(4)
    ids = allocator.alloc(2)
    allocator.free(ids)
    with pytest.raises(InvalidArgumentError, match=f"Block {ids[0]} is not allocated") as caught:
        allocator.free(ids)
    assert caught.value.numbers == {"block": ids[0]}
    assert "Free each block once" in str(caught.value)


def test_eight_threads_never_share_a_block():
    allocator, faults = BlockAllocator(64), []
    owners = np.zeros(64, np.int64)

    def work(me):
        rng = np.random.default_rng(me)
        try:
            for _ in range(1500):
                try:
                    ids = allocator.alloc(int(rng.integers(1, 12)))
                except OutOfMemoryError:
                    continue
                owners[ids] += me
                if (owners[ids] != me).any():
                    faults.append(owners[ids].tolist())
                owners[ids] -= me
                allocator.retain(ids)
                assert allocator.free(ids) == 0
                assert allocator.free(ids) == ids.size
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            faults.append(error)

    threads = [threading.Thread(target=work, args=(1 << me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert Counter(allocator.alloc(64).tolist()) == Counter(range(64))
