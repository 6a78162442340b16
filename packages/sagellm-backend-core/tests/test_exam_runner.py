"""Every way in which a case or a provider can end, and none of them a pass but one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from sagellm_backend.conformance import runner
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.runner import run
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

PLANTED = Path(__file__).parent / "planted"
LIMIT_S = 3.0


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    monkeypatch.syspath_prepend(str(PLANTED))


def examine(modules=("planted_cases",), backend="reference", **options):
    options.setdefault("case_timeout_s", 30.0)
    return run(backend, modules=modules, paths=[str(PLANTED)], **options)


def is_gone(pid):
    """Whether a process that was killed ends; on a busy machine that takes a while."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if ") Z" in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The run of all misbehaving cases, with its files and what was said on the way."""
    out, seen = tmp_path_factory.mktemp("out"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLANTED))
        patch.setenv("PYTEST_ADDOPTS", "--no-such-option")
        result = examine(out=out, progress=seen.append, seed=11, case_timeout_s=LIMIT_S)
    return result, seen


@pytest.fixture(scope="module")
def by_name(planted):
    return {item.id.partition(".")[2]: item for item in planted[0].cases}


@pytest.mark.parametrize(
    ("name", "outcome", "words"),
    [
        ("passes", "passed", ()),
        ("fails", "failed", ("one is not above two", "planted_cases")),
        ("asserts", "failed", ("there is a provider",)),
        ("raises", "error", ("KeyError", "planted")),
        ("wants_to_exit", "error", ("SystemExit",)),
        ("returns_a_coroutine", "error", ("coroutine",)),
        ("skips", "illegal_skip", ("not today",)),
        ("skips_as_pytest_does", "illegal_skip", ("not today",)),
        ("exits_with_0", "incomplete", ("exited with 0",)),
        ("exits_with_1", "crashed", ("exited with 1", "a last word")),
        ("kills_itself", "crashed", ("signal 9",)),
        ("hangs", "timeout", ("within 3 s", "in hangs")),
        ("floods", "failed", ("5,242,880 bytes",)),
        ("talks_a_little", "passed", ()),
        ("leaves_a_thread", "failed", ("planted-thread",)),
        ("ends_its_threads", "passed", ()),
        ("closing_fails", "error", ("when closed", "ZeroDivisionError")),
        ("leaves_a_process", "passed", ()),
        ("is_given_values[1]", "passed", ()),
        ("is_given_values[two]", "passed", ()),
        ("refuses_graphs", "passed", ()),
    ],
)
def test_outcome(by_name, name, outcome, words):
    found = by_name[name]
    assert found.outcome == outcome, found.detail
    for word in words:
        assert word in found.detail


def test_every_planned_case_has_one_result(planted):
    result, _ = planted
    assert [item.id for item in result.cases] == [case.id for case in result.plan.cases]
    assert len(result.cases) == 21
    left_out = {item.id: item.reason for item in result.plan.not_applicable}
    assert left_out == {
        "graph.captures": "capability_not_declared",
        "model.takes_long": "depth",
    }


def test_the_run_is_not_conformant_and_counts(planted):
    result, _ = planted
    assert not result.conformant
    assert result.counts == {
        "passed": 7,
        "failed": 4,
        "error": 4,
        "crashed": 2,
        "timeout": 1,
        "illegal_skip": 2,
        "incomplete": 1,
        "missing": 0,
    }
    assert result.profiles["kv"]["passed"] == 2
    assert "graph" not in result.plan.claimed
    assert not result.complete


def test_progress_counts_up(planted):
    result, seen = planted
    assert [item.done for item in seen] == list(range(len(result.cases) + 1))
    assert (seen[0].last, seen[0].left_s) == (None, None)
    assert seen[0].current == result.cases[0].id
    assert seen[-1].counts == {name: n for name, n in result.counts.items() if n}
    assert (seen[-1].current, seen[-1].left_s) == (None, 0)


def test_plan_and_ledger_are_on_disk(planted):
    result, _ = planted
    written = json.loads((result.out / "plan.json").read_text())
    assert written["digest"] == result.plan.digest
    records = [json.loads(line) for line in (result.out / "ledger.jsonl").read_text().splitlines()]
    judged = runner.judge(result.plan.cases, records, 11)
    assert tuple(judged) == result.cases


def test_what_a_case_leaves_behind_is_ended(by_name):
    assert is_gone(int(by_name["leaves_a_process"].metrics["pid"]))


def test_a_failure_says_what_its_process_had_done_before(by_name):
    assert "ran" not in by_name["passes"].detail
    assert "had run 1 cases, core.passes the last" in by_name["fails"].detail
    assert "had run" not in by_name["exits_with_1"].detail


def test_details_hold_no_paths(by_name):
    for item in by_name.values():
        if item.outcome != "timeout":
            assert str(PLANTED) not in item.detail


def test_a_case_has_the_same_data_alone_and_with_a_seed_of_its_own(by_name):
    name = "kv.is_given_values[two]"
    again = examine(seed=11, cases=[name]).cases
    other = examine(seed=12, cases=[name]).cases
    assert [item.id for item in again] == [name]
    assert again[0].metrics == by_name["is_given_values[two]"].metrics
    assert again[0].seed == by_name["is_given_values[two]"].seed
    assert other[0].metrics != again[0].metrics
    assert by_name["is_given_values[1]"].metrics != again[0].metrics


@pytest.mark.parametrize(
    ("factory", "outcome", "words"),
    [
        ("planted_hang:anything", "timeout", ("within 1 s", "planted_hang.py")),
        ("planted_providers:hangs", "timeout", ("in hangs",)),
        ("planted_providers:raises", "error", ("RuntimeError", "planted at construction")),
        ("planted_providers:exits", "incomplete", ("ended with 0",)),
        ("planted_providers:Wordless", "error", ("claims nothing",)),
        ("planted_providers:Unclosable", "error", ("does not close",)),
        ("planted_providers:absent", "error", ("absent",)),
        ("planted_absent:any", "error", ("ModuleNotFoundError",)),
    ],
)
def test_a_provider_that_does_not_start_is_an_outcome(factory, outcome, words):
    limit_s = 1.0 if outcome == "timeout" else 20.0
    result = examine(factory=factory, case_timeout_s=limit_s)
    (found,) = result.cases
    assert (found.id, found.outcome) == (runner.STARTUP, outcome), found.detail
    assert not result.conformant
    assert result.descriptor is None
    for word in words:
        assert word in found.detail


def test_a_factory_makes_the_provider():
    result = examine(factory="planted_providers:sound", profiles=["kv"])
    assert result.conformant
    assert not result.complete
    assert result.plan.claimed == ("kv",)


def test_a_device_that_is_not_there_is_no_outcome():
    with pytest.raises(UnavailableError, match="no such card"):
        examine(factory="planted_providers:unavailable")


def test_an_installed_backend_that_breaks_is_an_outcome(distributions):
    distributions.add_backend(
        "rogue", provider="def Provider(config=None):\n    raise OSError(5)\n"
    )
    result = run("rogue", modules=["planted_cases"], paths=distributions.paths)
    (found,) = result.cases
    assert found.outcome == "error"
    assert "OSError" in found.detail


def test_an_unknown_backend_is_refused():
    with pytest.raises(InvalidArgumentError, match="nothing-of-this-name"):
        examine(backend="nothing-of-this-name")


@pytest.mark.parametrize(
    "options",
    [
        {"profiles": ["no-such"]},
        {"depth": "deep"},
        {"seed": -1},
        {"case_timeout_s": 0},
        {"factory": "planted_providers"},
        {"cases": ["core.no_such"]},
        {"cases": ["graph.captures"]},
    ],
)
def test_bad_requests_are_refused(options):
    with pytest.raises(InvalidArgumentError):
        examine(**options)


def test_a_suite_that_does_not_load_is_named():
    with pytest.raises(HarnessError, match="planted_broken.*planted at import"):
        examine(["planted_cases", "planted_broken"])


def test_a_run_gives_up_on_endless_deaths(monkeypatch):
    monkeypatch.setattr(runner, "MAX_REPLACEMENTS", 1)
    result = examine(["planted_gone"])
    assert [item.outcome for item in result.cases] == ["crashed", "crashed", "missing"]
    assert "gave up after 1" in result.cases[-1].detail


def test_cases_without_a_provider_are_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANTED_MARK", str(tmp_path / "mark"))
    result = examine(["planted_gone"], factory="planted_providers:Counting")
    assert [item.outcome for item in result.cases] == ["crashed", "missing", "missing"]
    assert "the device is gone" in result.cases[-1].detail
    monkeypatch.setattr(runner, "MAX_REPLACEMENTS", 1)
    (tmp_path / "mark").unlink()
    result = examine(["planted_gone"], factory="planted_providers:Counting")
    assert "gave up after 1" in result.cases[-1].detail


def test_a_device_that_goes_away_meanwhile_costs_only_the_rest(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANTED_MARK", str(tmp_path / "mark"))
    result = examine(["planted_gone"], factory="planted_providers:Leaving")
    assert [item.outcome for item in result.cases] == ["crashed", "missing", "missing"]
    assert "the card was pulled" in result.cases[-1].detail


def test_files_that_cannot_be_written_are_the_harness_s_fault(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="Cannot write the plan"):
        examine(out=tmp_path / "file" / "below")


def children():
    """The processes that this one started and has not reaped, by any of its threads."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def test_an_interruption_leaves_no_process():
    left = []

    def interrupt(progress):
        if progress.last is not None and progress.last.metrics.get("pid"):
            left.append(int(progress.last.metrics["pid"]))
            raise KeyboardInterrupt

    before = children()
    with pytest.raises(KeyboardInterrupt):
        examine(cases=["core.leaves_a_process", "kv.is_given_values[1]"], progress=interrupt)
    assert is_gone(left[0])
    assert children() <= before
