"""How speeds are measured: what counts, what is refused, and what is exact about it."""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest

from sagellm_backend.conformance import speed
from sagellm_backend.conformance.case import Case, plan
from sagellm_backend.conformance.exam import CheckFailed, Exam
from sagellm_backend.conformance.speed import Meter, Work, report, same, sized
from sagellm_backend.conformance.workloads import Copy, Decode, Linear, Norm, streaming, widest
from sagellm_backend.dtypes import DType
from sagellm_backend.reference.provider import ReferenceProvider

STEP_S = 0.003


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(speed, "time", made)
    return made


class Device:
    """A device that works for a while, and waits for it in synchronize() or only at the reading."""

    def __init__(self, clock, *, early=False):
        self.clock, self.early, self.pending = clock, early, 0.0

    def wait(self):
        self.clock.now += self.pending
        self.pending = 0.0

    def synchronize(self):
        if not self.early:
            self.wait()


class Toy(Work):
    """Runs of :data:`STEP_S`, of which the device may skip some; reading takes what it is told."""

    amount = 6.0

    def __init__(self, exam, *, step_s=STEP_S, reading=(), skips=0, size=0):
        super().__init__(exam)
        self.step_s, self.skips, self.size = step_s, skips, size
        self.reading = itertools.cycle(reading or (0.0,))
        self.all_checked = []

    def begin(self):
        return 0

    def step(self, state, index):
        if index and self.skips:
            return state
        self.provider.pending += self.step_s
        return state + 1

    def look(self, state):
        self.provider.wait()
        self.provider.clock.now += next(self.reading)
        return np.array(state)

    def check(self, part, runs):
        self.exam.check(part == runs, f"{part} of {runs} runs")

    def check_all(self, state, runs):
        self.all_checked.append((state, runs))


def fake_exam(device, **capability):
    made = SimpleNamespace(
        provider=device, metrics={}, capability=SimpleNamespace(**capability), check=None
    )
    made.check = lambda condition, message: Exam.check(made, condition, message)
    made.measure = lambda name, value: Exam.measure(made, name, value)
    return made


@pytest.fixture
def exam(clock):
    return fake_exam(Device(clock), available_memory_bytes=1 << 40)


def test_a_rate_is_the_amount_by_the_time_of_a_run(exam):
    meter = Meter(Toy(exam))
    meter.attempt()
    assert meter.rate == pytest.approx(6.0 / STEP_S)
    assert meter.runs * STEP_S >= speed.SPAN_S


@pytest.mark.parametrize(("step_s", "runs"), [(1.0, 2), (1e-6, Toy.most)])
def test_runs_fill_the_span_within_their_limits(exam, step_s, runs):
    assert Meter(Toy(exam, step_s=step_s)).runs == runs


def test_an_early_synchronize_is_no_speed(clock):
    exam = fake_exam(Device(clock, early=True))
    with pytest.raises(CheckFailed, match=r"In 20 of 20 attempts synchronize\(\) returned"):
        report(exam, "gb_per_s", 1.0, [Meter(Toy(exam))])
    assert exam.metrics == {}


def test_a_synchronize_that_is_early_by_half_is_at_most_half_again_as_fast(clock):
    class Half(Device):
        def synchronize(self):
            self.clock.now += 0.7 * self.pending
            self.pending *= 0.3

    exam = fake_exam(Half(clock))
    report(exam, "gb_per_s", 1.0, [Meter(Toy(exam))])
    assert exam.metrics["gb_per_s"] <= 1.5 * 6.0 / STEP_S


def test_slow_readings_are_no_fault(exam):
    meter = Meter(Toy(exam, reading=(0.5,)))
    for _ in range(speed.ATTEMPTS):
        meter.attempt()
    assert meter.settled


def test_a_delay_now_and_then_is_no_fault_and_does_not_count(exam):
    # The first of two readings is delayed in every third attempt.
    work = Toy(exam, reading=(0.0, 0.0, 0.0, 0.0, 0.05, 0.0))
    meter = Meter(work)
    while not meter.settled:
        meter.attempt()
    assert not meter.given_up
    assert meter.rate == pytest.approx(6.0 / STEP_S)


def test_runs_that_were_counted_on_a_busy_machine_are_counted_anew(exam, clock):
    work = Toy(exam, step_s=1e-4)
    work.step_s = 1.0
    meter = Meter(work)
    assert meter.runs == 2
    work.step_s = 1e-4
    while not meter.settled:
        meter.attempt()
    assert meter.runs * work.step_s >= speed.SPAN_S / 2
    assert meter.rate == pytest.approx(6.0 / 1e-4)


def test_work_that_was_left_out_fails(exam):
    with pytest.raises(CheckFailed, match="1 of 2 runs"):
        Meter(Toy(exam, skips=1))


def test_the_last_result_is_looked_at_as_a_whole(exam, monkeypatch):
    monkeypatch.setattr(speed, "BUDGET_S", 0.0)
    work = Toy(exam)
    meter = Meter(work)
    report(exam, "gb_per_s", 1.0, [meter])
    assert work.all_checked == [(1, 1), (meter.runs, meter.runs)]


def test_the_limit_is_the_best_of_the_others(exam):
    steps = (STEP_S, 2 * STEP_S, 4 * STEP_S)
    report(exam, "gb_per_s", 2.0, [Meter(Toy(exam, step_s=step)) for step in steps])
    assert exam.metrics == pytest.approx({"gb_per_s": 3.0 / STEP_S, "gb_per_s_limit": 1.5 / STEP_S})


def test_a_speed_above_its_limit_is_reported_as_it_is(exam):
    report(exam, "gb_per_s", 1.0, [Meter(Toy(exam)), Meter(Toy(exam, step_s=100 * STEP_S))])
    assert exam.metrics["gb_per_s"] == pytest.approx(100 * exam.metrics["gb_per_s_limit"])


@pytest.mark.parametrize(
    ("memory", "rate", "wanted"),
    [(1 << 40, 1e8, 0), (1 << 40, 2e10, 1), (1 << 40, 1e12, 2), (1 << 28, 1e12, 1), (0, 1e12, 0)],
)
def test_arrays_are_as_large_as_the_device_is_fast(exam, memory, rate, wanted):
    exam.capability.available_memory_bytes = memory
    meter = sized(exam, lambda size: Toy(exam, step_s=size / rate, size=size))
    assert meter.work.size == speed.SIZES[wanted]


class Skipping(ReferenceProvider):
    """Its second call of a kernel, and every later one, gives back what the first gave."""

    def get_kernel(self, name, **static):
        kernel, kept = super().get_kernel(name, **static), []

        def call(*args):
            if not kept:
                kept.append(kernel(*args))
            return kept[0]

        return call


def examined(build, profile="kernels"):
    case = Case(f"{profile}.test", profile, "A test.", lambda _: None, {})
    with build(None) as provider:
        capability = provider.capability()
    return Exam(case, capability, build)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP16, DType.FP32], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda exam, dtype: Copy(exam, dtype, 1 << 16),
        lambda exam, dtype: Copy(exam, dtype, 1 << 16, shuffle=True),
        lambda exam, dtype: Linear(exam, dtype, 8, 64),
        lambda exam, dtype: Decode(exam, dtype, 4, 1 << 16),
        lambda exam, dtype: Norm(exam, dtype, 1 << 16),
    ],
    ids=["copy", "shuffle", "linear", "decode", "norm"],
)
def test_workloads_tell_their_result_after_any_number_of_runs(make, dtype):
    with closing(examined(ReferenceProvider)) as exam:
        work = make(exam, dtype)
        for runs in (1, 2, 5):
            state = work.begin()
            for index in range(runs):
                state = work.step(state, index)
            work.check(work.look(state), runs)
            work.check_all(state, runs)
            for other in (runs - 1, runs + 1):
                with pytest.raises(CheckFailed):
                    work.check_all(state, other)


@pytest.mark.parametrize(
    "make",
    [lambda exam: Linear(exam, DType.FP32, 8, 64), lambda exam: Norm(exam, DType.FP32, 1 << 16)],
    ids=["linear", "norm"],
)
def test_a_skipping_device_fails(make):
    with closing(examined(Skipping)) as exam, pytest.raises(CheckFailed):
        Meter(make(exam))


def test_without_embedding_there_is_no_limit():
    with closing(examined(ReferenceProvider)) as exam:
        exam.capability.operations.pop("embedding")
        assert widest(exam.capability) == ()
        assert streaming(exam) == []
        work = Linear(exam, DType.FP32, 8, 64)
        work.check(work.look(work.step(work.begin(), 0)), 1)


def test_equal_arrays_pass_and_others_tell_where():
    with closing(examined(ReferenceProvider)) as exam:
        ours = np.arange(12.0).reshape(3, 4).T
        same(exam, ours, ours.copy(), "them")
        with pytest.raises(CheckFailed, match=r"1 of 12 elements differ, the first at \(0, 1\)"):
            same(exam, ours, np.where(ours == 4.0, 5.0, ours), "them")
        with pytest.raises(CheckFailed, match="float32"):
            same(exam, ours.astype(np.float32), ours, "them")


def test_speeds_are_for_the_depth_of_certificates():
    with ReferenceProvider() as provider:
        capability = provider.capability()
    profiles = ("core", "kv", "kernels", "attention")
    for depth, count in (("smoke", 0), ("standard", 10)):
        cases = plan(capability, profiles, depth).cases
        assert sum(".speed_of_" in item.id for item in cases) == count


def test_time_is_that_of_the_host():
    start = time.perf_counter()
    with closing(examined(ReferenceProvider)) as exam:
        meter = Meter(Copy(exam, DType.FP32, 1 << 20))
        while not (meter.counted or meter.given_up):  # a busy machine's do not all count
            meter.attempt()
        passed = time.perf_counter() - start
        assert meter.work.amount / meter.rate * meter.runs <= passed
