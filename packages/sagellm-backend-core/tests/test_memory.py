"""The ledger: what is held by category, never beyond the limit, whatever the order of threads."""

import gc
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.memory import MemoryLedger, MemoryLedgers, MemoryStats

LIMIT = 1000
CATEGORIES = ["kv", "graph", "other"]


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.ledger = MemoryLedger(LIMIT, "cpu")
        self.charges: list[tuple[int, str]] = []
        self.idle = self.used = self.peak = 0

    @rule(nbytes=st.integers(0, 700), category=st.sampled_from(CATEGORIES))
    def charge(self, nbytes, category):
        if self._refused(self.ledger.charge, nbytes, category):
            return
        self.charges.append((nbytes, category))
        self.peak = max(self.peak, self._allocated())

    @precondition(lambda self: self.charges)
    @rule(data=st.data())
    def release(self, data):
        charge = data.draw(st.sampled_from(self.charges))
        self.charges.remove(charge)
        self.ledger.release(*charge)

    @rule(nbytes=st.integers(0, 700))
    def reserve(self, nbytes):
        if not self._refused(self.ledger.reserve, nbytes):
            self.idle += nbytes

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def unreserve(self, data):
        nbytes = data.draw(st.integers(0, self.idle))
        self.ledger.unreserve(nbytes)
        self.idle -= nbytes

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def use_reserved(self, data):
        nbytes = data.draw(st.integers(0, self.idle))
        self.ledger.use_reserved(nbytes)
        self.idle -= nbytes
        self.used += nbytes
        self.peak = max(self.peak, self._allocated())

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def return_reserved(self, data):
        nbytes = data.draw(st.integers(0, self.used))
        self.ledger.return_reserved(nbytes)
        self.used -= nbytes
        self.idle += nbytes

    @invariant()
    def agree_with_the_model(self):
        held = {name: sum(n for n, kind in self.charges if kind == name) for name in CATEGORIES}
        held["kv"] += self.used
        assert self.ledger.stats(device_total=7, device_free=5) == {
            "allocated_bytes": self._allocated(),
            "peak_allocated_bytes": self.peak,
            "kv_bytes": held["kv"],
            "graph_bytes": held["graph"],
            "other_bytes": held["other"],
            "reserved_bytes": self._allocated() + self.idle,
            "limit_bytes": LIMIT,
            "device_total_bytes": 7,
            "device_free_bytes": 5,
        }

    def _allocated(self):
        return sum(nbytes for nbytes, _ in self.charges) + self.used

    def _refused(self, method, nbytes, *category):
        free = LIMIT - self._allocated() - self.idle
        if nbytes <= free:
            method(nbytes, *category)
            return False
        with pytest.raises(OutOfMemoryError) as caught:
            method(nbytes, *category)
        assert caught.value.numbers == {"requested": nbytes, "free": free, "limit": LIMIT}
        return True


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_stats_have_the_declared_keys():
    stats = MemoryLedger(1, "cpu").stats(device_total=1, device_free=1)
    assert stats.keys() == MemoryStats.__annotations__.keys()


def test_a_snapshot_is_the_caller_s_own():
    ledger = MemoryLedger(LIMIT, "cpu")
    before = ledger.stats(device_total=1, device_free=1)
    ledger.charge(10, "kv")
    before["kv_bytes"] = 99
    assert ledger.stats(device_total=1, device_free=1)["kv_bytes"] == 10


def test_the_refusal_names_device_and_numbers():
    ledger = MemoryLedger(LIMIT, "npu:3")
    ledger.charge(400, "graph")
    with pytest.raises(OutOfMemoryError, match=r"2,000 bytes .* npu:3, 600 of 1,000 are free"):
        ledger.charge(2000, "kv")


def test_eight_threads_hold_exactly_what_they_charged():
    ledger, refused = MemoryLedger(LIMIT, "cpu"), []

    def work():
        for _ in range(4000):
            try:
                ledger.charge(200, "other")
            except OutOfMemoryError:
                refused.append(1)
                continue
            assert ledger.stats(device_total=0, device_free=0)["allocated_bytes"] <= LIMIT
            ledger.release(200, "other")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = ledger.stats(device_total=0, device_free=0)
    assert stats["allocated_bytes"] == stats["reserved_bytes"] == 0
    assert 0 < stats["peak_allocated_bytes"] <= LIMIT


def test_garbage_collection_inside_a_call_may_release():
    ledger = MemoryLedger(LIMIT, "cpu")
    ledger.charge(100, "kv")

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            ledger.release(100, "kv")

    done = threading.Event()

    def work():
        Cycle()
        with ledger._lock:  # as when a call of the ledger makes an object
            gc.collect()
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(10), "the release waits for the lock that its own thread holds"
    assert ledger.stats(device_total=0, device_free=0)["kv_bytes"] == 0


def test_each_device_has_one_ledger_with_its_own_limit():
    ledgers = MemoryLedgers({"cuda:0": 10, "cuda:1": 20}.__getitem__)
    assert ledgers.of("cuda:0") is ledgers.of("cuda:0")
    assert ledgers.of("cuda:1").limit_bytes == 20
    with pytest.raises(OutOfMemoryError):
        ledgers.of("cuda:0").charge(11, "kv")
    ledgers.of("cuda:1").charge(11, "kv")
