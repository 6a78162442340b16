"""One entry point: loaded, recognised and probed, and what it may do to others: nothing."""

from __future__ import annotations

import sys

import pytest

from sagellm_backend.discovery import discover
from sagellm_backend.entries import EntryState


def test_a_backend_is_found_and_probed(distributions):
    module = distributions.add_backend("chip", distribution="vendor-chip", aliases=("chip2",))
    found = distributions.entry("chip")
    assert found.state is EntryState.AVAILABLE
    assert (found.distribution, found.version) == ("vendor-chip", "1.0")
    assert found.probe.devices[0].name == "a device"
    assert found.names == ("chip", "chip2")
    assert found.reason == found.remedy == ""
    assert f"{module}_provider" not in sys.modules, "finding a backend imported its provider"


@pytest.mark.parametrize("state", ["absent", "broken", "unsupported"])
def test_the_words_of_a_probe_reach_the_report(distributions, state):
    distributions.add_backend("chip", probe=f"Probe.{state}('no card', 'buy one')")
    found = distributions.entry("chip")
    assert found.state.value == state
    assert (found.reason, found.remedy) == ("no card", "buy one")
    assert found.why == "no card. buy one"


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
    bad = distributions.entry("bad")
    assert bad.state is EntryState.FAULTED
    assert said in bad.reason
    assert "vendor-bad" in bad.remedy
    assert distributions.entry("good").state is EntryState.AVAILABLE


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
    found = distributions.entry("chip")
    assert found.state is EntryState.FAULTED
    assert said in found.reason


def test_keyboard_interrupt_is_not_caught_and_leaves_discovery_usable(distributions):
    root = distributions.add(
        "vendor-slow", {"slow": "slow_module:SPEC"}, {"slow_module": "raise KeyboardInterrupt"}
    )
    with pytest.raises(KeyboardInterrupt):
        discover()
    (root / "slow_module.py").write_text("raise OSError('later')")
    assert "OSError" in distributions.entry("slow").reason


@pytest.mark.parametrize("target", ["create", "create_without", "Provider"])
def test_a_v01_factory_or_class_is_adapted(distributions, target):
    distributions.add_v01("Old-Chip", target)
    found = distributions.entry("old-chip")
    assert found.state is EntryState.UNPROBED
    assert "name it to use it" in found.reason
    assert not found.spec.automatic
    assert found.spec.priority == 0
    assert type(found.spec()).__name__ == "Provider"


def test_a_v01_factory_gets_the_config(distributions):
    distributions.add_v01("chip", "create")
    distributions.entry("chip").spec({"device": 1})
    assert sys.modules["old_module"].calls == [{"device": 1}]


def test_a_config_that_a_v01_factory_cannot_take_is_refused(distributions):
    distributions.add_v01("chip", "create_without")
    with pytest.raises(ValueError, match="takes no config"):
        distributions.entry("chip").spec({"device": 1})


def test_a_v01_factory_under_an_impossible_name_is_a_fault(distributions):
    distributions.add_v01("auto", "create")
    found = distributions.entry("auto")
    assert found.state is EntryState.FAULTED
    assert "'auto' cannot name a backend" in found.reason


@pytest.mark.parametrize(
    ("target", "kind"),
    [("Plugin", "class old_module.Plugin"), ("THING", "type int"), ("wants_two", "type function")],
)
def test_what_is_not_a_backend_is_ignored_with_a_word(distributions, target, kind):
    distributions.add_v01("cpu", target)
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
    found = distributions.entry("chip")
    assert found.state is EntryState.FAULTED
    assert f"contract {contract[0]}.{contract[1]}" in found.reason
    assert "speaks 1.0" in found.reason
    assert who in found.remedy
    assert found.probe is None
