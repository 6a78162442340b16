"""The verdict on a case, from the records of the parent and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sagellm_backend.conformance.case import Case
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.exam import case_seed
from sagellm_backend.conformance.ledger import OUTCOMES, OUTPUT_LIMIT, Ledger, judge

CASE = Case("core.x", "core", "It proves.", print, {})
PAIR = Case("core.y", "core", "It proves.", print, {}, world=2)
QUIET = {"output": "", "output_bytes": 0}


def start(case=CASE, rank=0):
    return {"event": "start", "id": case.id, "rank": rank}


def end(outcome="passed", detail="", case=CASE, rank=0, **more):
    content = {"outcome": outcome, "detail": detail, "seconds": 0.5, "metrics": {"r": 1.0}}
    return {"event": "end", "id": case.id, "rank": rank, **content, **QUIET, **more}


def died(code, case=CASE, rank=0, output=""):
    found = {"event": "died", "id": case.id, "rank": rank, "returncode": code, "stacks": ""}
    return {**found, **QUIET, "output": output, "seconds": 0.1}


def verdict(*records, case=CASE):
    (found,) = judge([case], records, 3)
    return found


def test_a_pass_has_its_numbers():
    found = verdict(start(), end())
    assert found.passed
    assert (found.seconds, found.metrics, found.detail) == (0.5, {"r": 1.0}, "")
    assert (found.seed, found.ranks) == (case_seed(3, "core.x"), None)
    assert json.loads(json.dumps(found.to_dict()))["outcome"] == "passed"


@pytest.mark.parametrize(
    ("records", "outcome"),
    [
        ([], "missing"),
        ([end()], "missing"),
        ([start()], "incomplete"),
        ([start(), died(0)], "incomplete"),
        ([start(), died(1)], "crashed"),
        ([start(), died(-11)], "crashed"),
        ([start(), end("failed")], "failed"),
        ([start(), end("error")], "error"),
        ([start(), end("illegal_skip")], "illegal_skip"),
        ([start(), end("excellent")], "error"),
        ([start(), end("xfailed")], "error"),
        ([start(), end(output_bytes=OUTPUT_LIMIT)], "passed"),
        ([start(), end(output_bytes=OUTPUT_LIMIT + 1)], "failed"),
        ([start(case=PAIR), end(case=PAIR)], "missing"),
    ],
)
def test_outcome(records, outcome):
    assert verdict(*records).outcome == outcome
    assert outcome in OUTCOMES


def test_a_death_after_the_pass_is_not_hidden():
    assert verdict(start(), end(), died(1)).outcome == "crashed"


def test_what_was_printed_stands_behind_the_reason():
    assert verdict(start(), died(1, output="the last words\n")).detail.endswith("the last words")


class TestRanks:
    def test_all_must_pass(self):
        first = [start(PAIR), end(case=PAIR)]
        assert verdict(*first, case=PAIR).outcome == "missing"
        assert verdict(*first, case=PAIR).ranks == ("passed", "missing")
        both = [*first, start(PAIR, 1), end(case=PAIR, rank=1)]
        assert verdict(*both, case=PAIR).passed

    def test_the_first_in_time_is_to_blame(self):
        records = [
            *(start(PAIR, 0), start(PAIR, 1)),
            died(-9, PAIR, 1),
            {"event": "killed", "id": PAIR.id, "rank": 0, "detail": "ended because", **QUIET},
        ]
        found = verdict(*records, case=PAIR)
        assert (found.outcome, found.ranks) == ("crashed", ("incomplete", "crashed"))
        assert found.detail.startswith("rank 1: the process was killed by signal 9")
        reversed_ends = [*records[:2], end("failed", "b", PAIR, 1), end("error", "a", PAIR, 0)]
        assert verdict(*reversed_ends, case=PAIR).outcome == "failed"


class TestFile:
    def test_every_record_is_on_disk_at_once(self, tmp_path):
        path = tmp_path / "ledger.jsonl"
        ledger = Ledger(path)
        for number in range(3):
            ledger.add("start", "core.x", number, text="[ü]")
            lines = path.read_text().splitlines()
            assert [json.loads(line) for line in lines] == ledger.records
            assert len(lines) == number + 1

    def test_a_former_ledger_is_replaced(self, tmp_path):
        path = tmp_path / "ledger.jsonl"
        path.write_text("old")
        Ledger(path)
        assert path.read_text() == ""

    def test_a_full_disk_is_said(self):
        ledger = Ledger(Path("/dev/full"))
        with pytest.raises(HarnessError, match=r"Cannot write the ledger /dev/full: No space"):
            ledger.add("start", "core.x", 0)
