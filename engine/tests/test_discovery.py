"""The engine's own entry point, and its other ways to a provider."""

from __future__ import annotations

from sagellm_core.plugin.builtin import CPUBackendPlugin

from sagellm_backend import discover, get_provider
from sagellm_backend.cli import doctor
from sagellm_backend.cpu.provider import CPUBackendProvider
from sagellm_backend.entries import EntryState


def test_the_engines_plugin_is_met_and_ignored_with_a_word():
    report = discover(refresh=True)
    entries = {item.distribution: item for item in report.found if item.entry == "cpu"}
    assert set(entries) == {"isagellm-core", "sagellm-backend-cpu"}
    assert entries["isagellm-core"].state is EntryState.IGNORED
    assert entries["isagellm-core"].reason == "the engine's own plugin, not a backend"
    assert entries["sagellm-backend-cpu"].state is EntryState.AVAILABLE
    assert "the engine's own plugin" in report.render()
    assert isinstance(get_provider("cpu"), CPUBackendProvider)


def test_the_doctor_finds_nothing_wrong():
    data = doctor.examine(discover(refresh=True))
    assert data["healthy"]
    assert not data["problems"]


def test_the_engines_plugin_makes_our_provider():
    plugin = CPUBackendPlugin()
    assert plugin.is_available()
    assert isinstance(plugin.create_provider(), CPUBackendProvider)
