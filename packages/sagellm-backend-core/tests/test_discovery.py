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

FACTORY = """
calls = []
class Provider:
    def __init__(self):
        pass
for method in ("capability", "clear_cache", "create_event", "create_stream", "get_kernel",
               "kv_block_alloc", "kv_block_copy", "kv_block_free", "kv_block_migrate",
               "memory_stats", "register_kernel"):
    setattr(Provider, method, lambda self: None)
def create(config=None):
    calls.append(config)
    return Provider()
def create_without():
    return Provider()
def wants_two(a, b):
    return Provider()
class Plugin:
    pass
THING = 3
"""


def entry(report, name):
    """The only entry of that name."""
    (found,) = [item for item in report.found if item.name == name]
    return found


def test_a_backend_is_found_and_probed(distributions):
    module = distributions.add_backend("chip", distribution="vendor-chip", aliases=("chip2",))
    found = entry(discover(), "chip")
    assert found.state is EntryState.AVAILABLE
    assert (found.distribution, found.version) == ("vendor-chip", "1.0")
    assert found.probe.devices[0].name == "a device"
    assert found.names == ("chip", "chip2")
    assert found.reason == found.remedy == ""
    assert f"{module}_provider" not in sys.modules, "finding a backend imported its provider"


@pytest.mark.parametrize("state", ["absent", "broken", "unsupported"])
def test_the_words_of_a_probe_reach_the_report(distributions, state):
    distributions.add_backend("chip", probe=f"Probe.{state}('no card', 'buy one')")
    found = entry(discover(), "chip")
    assert found.state.value == state
    assert (found.reason, found.remedy) == ("no card", "buy one")
    assert found.why == "no card. buy one."


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('out')", "SystemExit: out"),
        ("raise RuntimeError", "RuntimeError"),
        ("x = 1", "AttributeError"),
        ("def :", "SyntaxError"),
    ],
)
def test_an_entry_that_does_not_load_is_a_fault_and_harms_no_other(distributions, source, said):
    distributions.add("vendor-bad", {"bad": "bad_module:SPEC"}, {"bad_module": source})
    distributions.add_backend("good")
    report = discover()
    bad = entry(report, "bad")
    assert bad.state is EntryState.FAULTED
    assert said in bad.reason
    assert "vendor-bad" in bad.remedy
    assert entry(report, "good").state is EntryState.AVAILABLE


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("(_ for _ in ()).throw(SystemExit(2))", "SystemExit: 2"),
        ("True", "answered bool, not Probe"),
        ("None", "answered NoneType"),
        ("Probe.available()", "InvalidArgumentError"),
    ],
)
def test_a_probe_that_fails_is_a_fault(distributions, probe, said):
    distributions.add_backend("chip", probe=probe)
    found = entry(discover(), "chip")
    assert found.state is EntryState.FAULTED
    assert said in found.reason


def test_keyboard_interrupt_is_not_caught_and_leaves_discovery_usable(distributions):
    root = distributions.add(
        "vendor-slow", {"slow": "slow_module:SPEC"}, {"slow_module": "raise KeyboardInterrupt"}
    )
    with pytest.raises(KeyboardInterrupt):
        discover()
    (root / "slow_module.py").write_text("raise OSError('later')")
    assert "OSError" in entry(discover(), "slow").reason


@pytest.mark.parametrize("target", ["create", "create_without", "Provider"])
def test_a_v01_factory_or_class_is_adapted(distributions, target):
    distributions.add("old", {"Old-Chip": f"old_module:{target}"}, {"old_module": FACTORY})
    found = entry(discover(), "old-chip")
    assert found.state is EntryState.UNPROBED
    assert "name it to use it" in found.reason
    assert not found.spec.automatic
    assert found.spec.priority == 0
    assert type(found.spec()).__name__ == "Provider"


def test_a_v01_factory_gets_the_config(distributions):
    distributions.add("old", {"chip": "old_module:create"}, {"old_module": FACTORY})
    entry(discover(), "chip").spec({"device": 1})
    assert sys.modules["old_module"].calls == [{"device": 1}]


def test_a_config_that_a_v01_factory_cannot_take_is_refused(distributions):
    distributions.add("old", {"chip": "old_module:create_without"}, {"old_module": FACTORY})
    with pytest.raises(ValueError, match="takes no config"):
        entry(discover(), "chip").spec({"device": 1})


def test_a_v01_factory_under_an_impossible_name_is_a_fault(distributions):
    distributions.add("old", {"auto": "old_module:create"}, {"old_module": FACTORY})
    found = entry(discover(), "auto")
    assert found.state is EntryState.FAULTED
    assert "'auto' cannot name a backend" in found.reason


@pytest.mark.parametrize(
    ("target", "kind"),
    [("Plugin", "class old_module.Plugin"), ("THING", "type int"), ("wants_two", "type function")],
)
def test_what_is_not_a_backend_is_ignored_with_a_word(distributions, target, kind):
    distributions.add("old", {"cpu": f"old_module:{target}"}, {"old_module": FACTORY})
    distributions.add_backend("cpu", distribution="sagellm-backend-cpu")
    states = {item.distribution: item for item in discover().found}
    assert states["old"].state is EntryState.IGNORED
    assert kind in states["old"].reason
    assert states["sagellm-backend-cpu"].state is EntryState.AVAILABLE


def test_the_engine_s_own_plugin_is_not_even_loaded(distributions):
    distributions.add(
        "isagellm_core", {"cpu": "heavy_engine:CPUBackendPlugin"}, {"heavy_engine": "raise OSError"}
    )
    distributions.add_backend("cpu", distribution="sagellm-backend-cpu")
    states = {item.distribution: item.state for item in discover().found}
    assert states["isagellm_core"] is EntryState.IGNORED
    assert states["sagellm-backend-cpu"] is EntryState.AVAILABLE
    assert "heavy_engine" not in sys.modules


@pytest.mark.parametrize(
    ("contract", "who"), [((2, 0), "Upgrade sagellm-backend-core"), ((0, 9), "Upgrade the package")]
)
def test_another_contract_is_refused_with_both_numbers(distributions, contract, who):
    distributions.add_backend("chip", contract=contract)
    found = entry(discover(), "chip")
    assert found.state is EntryState.FAULTED
    assert f"contract {contract[0]}.{contract[1]}" in found.reason
    assert "speaks 1.0" in found.reason
    assert who in found.remedy
    assert found.probe is None


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
    assert entry(report, "third").state is EntryState.AVAILABLE


def test_a_v01_factory_clashes_with_a_spec_of_its_name(distributions):
    distributions.add("old", {"cpu": "old_module:create"}, {"old_module": FACTORY})
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
    assert entry(discover(), "chip").state is EntryState.AVAILABLE


SPECS = """
import dataclasses
from sagellm_backend.reference.spec import SPEC
TWIN = dataclasses.replace(SPEC)
"""


def test_one_spec_under_two_entries_is_one(distributions):
    distributions.add("vendor", {"a": "specs:SPEC", "b": "specs:SPEC"}, {"specs": SPECS})
    assert entry(discover(), "reference").state is EntryState.AVAILABLE


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
    assert entry(report, "bad").state is EntryState.NOT_ALLOWED
    assert ALLOW in entry(report, "bad").reason
    assert "bad_module" not in sys.modules
    assert entry(report, "good").state is EntryState.AVAILABLE
    assert [hint for hint in report.hints if "'missing'" in hint]


def test_an_empty_allow_list_allows_everything(distributions, monkeypatch):
    distributions.add_backend("chip")
    monkeypatch.setenv(ALLOW, "")
    assert entry(discover(), "chip").state is EntryState.AVAILABLE


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
    distributions.add_backend("reference", distribution="vendor")
    distributions.add("sagellm-backend-core", {}, record=["sagellm_backend/__init__.py"])
    assert discover().hints == ()


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
    report = discover()
    assert UnavailableError.__name__ in entry(report, "loop").reason
    assert entry(report, "good").state is EntryState.AVAILABLE


def test_the_table_is_one_line_each_highest_priority_first(distributions, monkeypatch):
    seen = (Sighting("ascend", 1, "/dev/davinci0"),)
    monkeypatch.setattr(discovery, "seen_accelerators", lambda: seen)
    distributions.add_backend("low", priority=1)
    distributions.add_backend("high", priority=9, probe="Probe.absent('no card.', 'buy one')")
    lines = discover().render().splitlines()
    assert [line.split()[0] for line in lines] == ["high", "low", "!"]
    assert "no card. buy one." in lines[0]
    assert "a device" in lines[1]
    assert "sagellm-backend-ascend" in lines[2]


def test_an_empty_environment_says_so(distributions):
    report = discover()
    assert report.found == ()
    assert discovery.GROUP in report.render()


def test_the_report_is_plain_data(distributions):
    distributions.add_backend("chip", aliases=("chip2",))
    distributions.add("old", {"old": "old_module:create"}, {"old_module": FACTORY})
    data = json.loads(json.dumps(discover().to_dict()))
    chip, old = data["backends"]
    assert chip["aliases"] == ["chip2"]
    assert chip["devices"][0]["total_memory_bytes"] == 2**30
    assert chip["contract"] == [1, 0]
    assert old["state"] == "unprobed"
    assert not old["automatic"]
