"""Discovery keeps every answer and lets no package harm another."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from sagellm_backend import discovery
from sagellm_backend.devices import Sighting
from sagellm_backend.discovery import ALLOW, discover
from sagellm_backend.entries import EntryState
from sagellm_backend.errors import UnavailableError


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ({"name": "chip"}, {"name": "chip"}, "chip"),
        ({"name": "chip", "aliases": ("npu",)}, {"name": "other", "aliases": ("npu",)}, "npu"),
        ({"name": "chip", "aliases": ("other",)}, {"name": "other"}, "other"),
    ],
)
def test_two_backends_of_one_name_are_both_faulted(distributions, first, second, shared):
    distributions.add_backend(**first, distribution="vendor-one", entry="one")
    distributions.add_backend(**second, distribution="vendor-two", entry="two")
    distributions.add_backend("third")
    report = discover()
    clashing = [item for item in report.found if item.distribution.startswith("vendor-o")]
    clashing += [item for item in report.found if item.distribution == "vendor-two"]
    assert len(clashing) == 2
    for item in clashing:
        assert item.state is EntryState.FAULTED
        assert repr(shared) in item.reason
        assert "vendor-one 1.0" in item.reason
        assert "vendor-two 1.0" in item.reason
    assert distributions.entry("third").state is EntryState.AVAILABLE


def test_a_v01_factory_clashes_with_a_spec_of_its_name(distributions):
    distributions.add_v01("cpu", "create")
    distributions.add_backend("cpu", distribution="sagellm-backend-cpu")
    found = discover().found
    assert [item.state for item in found] == [EntryState.FAULTED] * 2
    assert all("old 1.0" in item.reason for item in found)
    assert all("sagellm-backend-cpu 1.0" in item.reason for item in found)


def test_an_entry_that_failed_takes_no_name_from_another(distributions):
    distributions.add("broken-cpu", {"cpu": "gone:SPEC"})
    distributions.add_backend("cpu", distribution="sagellm-backend-cpu")
    states = {item.distribution: item.state for item in discover().found}
    assert states == {
        "broken-cpu": EntryState.FAULTED,
        "sagellm-backend-cpu": EntryState.AVAILABLE,
    }


def test_one_distribution_seen_twice_is_one(distributions):
    module = distributions.add_backend("chip", distribution="vendor-chip")
    distributions.add("vendor_chip", {"chip": f"{module}:SPEC"}, version="0.9")
    assert distributions.entry("chip").state is EntryState.AVAILABLE


SPECS = """
import dataclasses
from sagellm_backend.reference.spec import SPEC
TWIN = dataclasses.replace(SPEC)
"""


def test_one_spec_under_two_entries_is_one(distributions):
    distributions.add("vendor", {"a": "specs:SPEC", "b": "specs:SPEC"}, {"specs": SPECS})
    assert distributions.entry("reference").state is EntryState.AVAILABLE


def test_two_specs_of_one_name_in_one_distribution_are_faulted(distributions):
    distributions.add("vendor", {"a": "specs:SPEC", "b": "specs:TWIN"}, {"specs": SPECS})
    twins = discover().found
    assert [item.state for item in twins] == [EntryState.FAULTED] * 2
    assert "entry 'a'" in twins[0].reason
    assert "entry 'b'" in twins[0].reason


def test_the_allow_list_keeps_others_from_loading(distributions, monkeypatch):
    distributions.add("vendor-bad", {"bad": "bad_module:SPEC"}, {"bad_module": "raise OSError"})
    distributions.add_backend("good")
    monkeypatch.setenv(ALLOW, " GOOD , missing,")
    report = discover()
    assert distributions.entry("bad").state is EntryState.NOT_ALLOWED
    assert ALLOW in distributions.entry("bad").reason
    assert "bad_module" not in sys.modules
    assert distributions.entry("good").state is EntryState.AVAILABLE
    assert [hint for hint in report.hints if "'missing'" in hint]


def test_an_empty_allow_list_allows_everything(distributions, monkeypatch):
    distributions.add_backend("chip")
    monkeypatch.setenv(ALLOW, "")
    assert distributions.entry("chip").state is EntryState.AVAILABLE


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("isagellm-backend", None),
        ("some-fork", ["sagellm_backend/__init__.py", "sagellm_backend/x.py"]),
    ],
)
def test_a_distribution_that_owns_our_package_is_named_and_not_loaded(distributions, name, record):
    distributions.add(name, {"cpu": "foreign:create"}, {"foreign": "raise OSError"}, record=record)
    distributions.add_backend("cpu", distribution="sagellm-backend-cpu")
    report = discover()
    (hint,) = report.hints
    assert f"pip uninstall {name}" in hint
    states = {item.distribution: item.state for item in report.found}
    assert states == {name: EntryState.IGNORED, "sagellm-backend-cpu": EntryState.AVAILABLE}
    assert "foreign" not in sys.modules


def test_core_may_own_the_package(distributions):
    entries = {"reference": "sagellm_backend.reference.spec:SPEC"}
    distributions.add("sagellm_backend_core", entries, record=["sagellm_backend/__init__.py"])
    assert discover().hints == ()
    assert distributions.entry("reference").state is EntryState.AVAILABLE


def test_seen_hardware_without_a_package_is_a_hint(distributions, monkeypatch):
    seen = (Sighting("cuda", 1, "/dev/nvidia0"), Sighting("dcu", 1, "/dev/kfd and /opt/hyhal"))
    monkeypatch.setattr(discovery, "seen_accelerators", lambda: seen)
    distributions.add_backend("cuda", probe="Probe.absent('hidden')")
    report = discover()
    (hint,) = report.hints
    assert "/dev/kfd" in hint
    assert "pip install sagellm-backend-cuda" in hint
    assert report.sightings == seen


def test_the_report_is_kept_until_something_changes(distributions, monkeypatch):
    distributions.add_backend("chip")
    first = discover()
    assert discover() is first
    assert discover(refresh=True) is not first
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    second = discover()
    assert second is not first
    distributions.add_backend("other")
    assert [item.name for item in discover().found] == ["chip", "other"]


def test_threads_get_one_report(distributions):
    distributions.add_backend("chip")
    barrier, reports = threading.Barrier(8), []

    def look():
        barrier.wait()
        reports.append(discover())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 8
    assert len({id(report) for report in reports}) == 1


def test_an_entry_that_looks_for_backends_itself_is_a_fault_and_not_a_loop(distributions):
    source = "from sagellm_backend.discovery import discover\ndiscover()"
    distributions.add("vendor-loop", {"loop": "loop_module:SPEC"}, {"loop_module": source})
    distributions.add_backend("good")
    assert UnavailableError.__name__ in distributions.entry("loop").reason
    assert distributions.entry("good").state is EntryState.AVAILABLE


def test_the_table_is_one_line_each_highest_priority_first(distributions, monkeypatch):
    seen = (Sighting("ascend", 1, "/dev/davinci0"),)
    monkeypatch.setattr(discovery, "seen_accelerators", lambda: seen)
    distributions.add_backend("low", priority=1)
    distributions.add_backend("high", priority=9, probe="Probe.absent('no card.', 'buy one')")
    lines = discover().render().splitlines()
    assert [line.split()[0] for line in lines] == ["high", "low", "!"]
    assert lines[0].endswith("no card.")
    assert "a device" in lines[1]
    assert "sagellm-backend-ascend" in lines[2]


def test_an_empty_environment_says_so(distributions):
    report = discover()
    assert report.found == ()
    assert discovery.GROUP in report.render()


def test_the_report_is_plain_data(distributions):
    distributions.add_backend("chip", aliases=("chip2",))
    distributions.add_v01("old", "create")
    data = json.loads(json.dumps(discover().to_dict()))
    chip, old = data["backends"]
    assert chip["aliases"] == ["chip2"]
    assert chip["devices"][0]["total_memory_bytes"] == 2**30
    assert chip["contract"] == [1, 0]
    assert old["state"] == "unprobed"
    assert not old["automatic"]
