"""Choosing: what was asked for, or the best there is, and aloud what is passed over."""

from __future__ import annotations

import logging
import sys

import pytest

from sagellm_backend import discovery
from sagellm_backend.devices import Sighting
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.registry import CHOICE, choose, get_provider


def see(monkeypatch, *names):
    """Let the machine have accelerators."""
    seen = tuple(Sighting(name, 1, f"/dev/{name}0") for name in names)
    monkeypatch.setattr(discovery, "seen_accelerators", lambda: seen)


class TestByName:
    def test_names_and_aliases_are_read_kindly(self, distributions):
        distributions.add_backend("chip", aliases=("chip_two",))
        for name in ("chip", " CHIP ", "Chip_Two\n"):
            assert type(get_provider(name)).__name__ == "Provider"

    def test_each_call_builds_a_new_one_with_the_config(self, distributions):
        distributions.add_backend("chip")
        first, second = get_provider("chip"), get_provider("chip", {"device": 1})
        assert first is not second
        assert first.config is None
        assert second.config == {"device": 1}

    def test_only_the_chosen_module_is_imported(self, distributions):
        chosen = distributions.add_backend("chosen", priority=9)
        other = distributions.add_backend("other", priority=5)
        get_provider()
        assert f"{chosen}_provider" in sys.modules
        assert f"{other}_provider" not in sys.modules

    def test_a_name_is_taken_whatever_framework_it_speaks(self, distributions):
        distributions.add_backend("chip", framework="paddle", automatic=False)
        assert get_provider("chip", array_framework="torch")

    def test_the_environment_chooses_where_the_program_does_not(self, distributions, monkeypatch):
        distributions.add_backend("high", priority=9)
        distributions.add_backend("low", priority=1)
        monkeypatch.setenv(CHOICE, " LOW ")
        for name in (None, "", "auto", " Auto "):
            assert choose(name).chosen.name == "low"
        assert choose("high").chosen.name == "high"
        monkeypatch.setenv(CHOICE, "auto")
        assert choose().chosen.name == "high"

    def test_an_unknown_name_lists_the_known_and_guesses(self, distributions, monkeypatch):
        distributions.add_backend("ascend", aliases=("npu",))
        distributions.add_backend("cpu")
        with pytest.raises(InvalidArgumentError, match=r"'ascned'.*ascend, cpu") as caught:
            get_provider("ascned")
        assert "Did you mean 'ascend'?" in caught.value.hint
        monkeypatch.setenv(CHOICE, "warp")
        with pytest.raises(InvalidArgumentError, match="SAGELLM_BACKEND=warp names no backend"):
            get_provider()

    def test_seen_hardware_without_a_package_is_named_by_its_package(
        self, distributions, monkeypatch
    ):
        see(monkeypatch, "cuda")
        distributions.add_backend("cpu")
        with pytest.raises(InvalidArgumentError, match="pip install sagellm-backend-cuda"):
            get_provider("cuda")

    @pytest.mark.parametrize("name", [3, b"cpu", ["cpu"]])
    def test_a_name_is_a_string(self, distributions, name):
        with pytest.raises(InvalidArgumentError, match=type(name).__name__):
            get_provider(name)

    @pytest.mark.parametrize("state", ["absent", "broken", "unsupported"])
    def test_what_cannot_be_used_is_refused_with_reason_and_remedy(self, distributions, state):
        distributions.add_backend("chip", probe=f"Probe.{state}('the card is gone', 'find it')")
        with pytest.raises(UnavailableError, match=r"vendor-chip 1.0.*the card is gone") as caught:
            get_provider("chip")
        assert state in caught.value.message
        assert caught.value.hint == "find it"

    def test_an_entry_that_did_not_load_is_refused_with_its_fault(self, distributions):
        distributions.add("vendor", {"chip": "gone:SPEC"})
        with pytest.raises(UnavailableError, match="No module named 'gone'"):
            get_provider("chip")

    def test_an_entry_that_is_not_allowed_says_so(self, distributions, monkeypatch):
        distributions.add_backend("chip")
        monkeypatch.setenv(discovery.ALLOW, "cpu")
        with pytest.raises(UnavailableError, match=discovery.ALLOW):
            get_provider("chip")

    @pytest.mark.parametrize("other", ["a-vendor", "z-vendor"])
    def test_an_entry_of_the_same_name_that_failed_is_no_hindrance(self, distributions, other):
        distributions.add(other, {"cpu": "gone:SPEC"})
        distributions.add_backend("cpu", distribution="m-vendor", priority=100)
        assert choose("cpu").chosen.distribution == "m-vendor"

    def test_two_of_one_name_are_refused_naming_both(self, distributions):
        distributions.add_backend("chip", distribution="vendor-one")
        distributions.add_backend("chip", distribution="vendor-two")
        with pytest.raises(UnavailableError, match="vendor-one") as caught:
            get_provider("chip")
        assert "vendor-two" in caught.value.message


class TestAuto:
    def test_the_highest_available_priority_wins(self, distributions):
        distributions.add_backend("low", priority=1)
        distributions.add_backend("absent", priority=9, probe="Probe.absent('no card')")
        distributions.add_backend("middle", priority=5)
        assert choose().chosen.name == "middle"

    def test_a_backend_that_is_not_automatic_is_never_chosen(self, distributions):
        distributions.add_backend("reference", priority=9, automatic=False)
        with pytest.raises(UnavailableError, match="No backend is available") as caught:
            get_provider()
        assert "reference" in caught.value.message
        assert "pip install" in caught.value.hint

    def test_paddle_is_for_those_who_ask_and_is_named_to_the_others(self, distributions, caplog):
        caplog.set_level(logging.INFO, "sagellm_backend")
        distributions.add_backend("xpu", priority=9, framework="paddle")
        distributions.add_backend("cpu", priority=1)
        get_provider()
        assert choose().chosen.name == "cpu"
        assert "'xpu' is available and was passed over: it speaks paddle" in caplog.text
        assert choose(array_framework=None).chosen.name == "xpu"
        assert choose(array_framework="paddle").chosen.name == "xpu"
        with pytest.raises(UnavailableError, match="'xpu' is available and was passed over"):
            choose(array_framework="numpy")

    def test_an_unknown_framework_is_refused(self, distributions):
        with pytest.raises(InvalidArgumentError, match="jax"):
            choose(array_framework="jax")

    def test_broken_hardware_is_an_error_not_the_cpu(self, distributions):
        distributions.add_backend("gpu", priority=9, probe="Probe.broken('old driver', 'mend it')")
        distributions.add_backend("cpu", priority=1)
        with pytest.raises(UnavailableError, match=r"'gpu' is there.*old driver") as caught:
            get_provider()
        assert "mend it" in caught.value.hint
        assert "SAGELLM_BACKEND=cpu" in caught.value.hint
        assert "a device" in caught.value.message, "the report is missing"

    def test_the_deliberate_choice_that_the_error_names_works(self, distributions, monkeypatch):
        distributions.add_backend("gpu", priority=9, probe="Probe.broken('old driver', 'mend it')")
        distributions.add_backend("cpu", priority=1)
        monkeypatch.setenv(CHOICE, "cpu")
        assert choose().chosen.name == "cpu"

    def test_a_broken_backend_that_is_not_automatic_hinders_nothing(self, distributions):
        probe = "Probe.broken('old driver', 'mend it')"
        distributions.add_backend("lab", priority=9, automatic=False, probe=probe)
        distributions.add_backend("cpu", priority=1)
        assert choose().chosen.name == "cpu"

    def test_broken_hardware_of_lower_priority_hinders_nothing(self, distributions):
        distributions.add_backend("gpu", priority=9)
        distributions.add_backend("cpu", priority=1, probe="Probe.broken('no torch', 'get it')")
        assert choose().chosen.name == "gpu"

    def test_broken_paddle_hardware_hinders_no_torch_engine(self, distributions):
        probe = "Probe.broken('no paddle', 'get it')"
        distributions.add_backend("xpu", priority=9, framework="paddle", probe=probe)
        distributions.add_backend("cpu", priority=1)
        assert choose().chosen.name == "cpu"
        with pytest.raises(UnavailableError, match="no paddle"):
            choose(array_framework=None)

    @pytest.mark.parametrize("seen", [True, False])
    def test_a_fault_is_an_error_where_its_hardware_is_seen(
        self, distributions, monkeypatch, caplog, seen
    ):
        distributions.add("sagellm-backend-cuda", {"cuda": "gone:SPEC"})
        distributions.add_backend("cpu", priority=100)
        if seen:
            see(monkeypatch, "cuda")
            with pytest.raises(UnavailableError, match="No module named 'gone'"):
                get_provider()
        else:
            get_provider()
            assert "'cuda' is passed over" in caplog.text

    def test_a_faulted_kunlun_package_hinders_no_torch_engine(self, distributions, monkeypatch):
        see(monkeypatch, "kunlun")
        distributions.add("sagellm-backend-kunlun", {"kunlun": "gone:SPEC"})
        distributions.add_backend("cpu", priority=100)
        assert choose().chosen.name == "cpu"
        with pytest.raises(UnavailableError, match="No module named 'gone'"):
            choose(array_framework=None)

    def test_unsupported_hardware_is_passed_over_aloud_once(self, distributions, caplog):
        distributions.add_backend("gpu", priority=9, probe="Probe.unsupported('not yet', 'wait')")
        distributions.add_backend("cpu", priority=1)
        get_provider()
        get_provider()
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.getMessage() for record in warnings] == [
            "Backend 'gpu' is passed over: not yet. wait"
        ]

    def test_an_accelerator_without_its_package_is_a_warning(
        self, distributions, monkeypatch, caplog
    ):
        see(monkeypatch, "ascend")
        distributions.add_backend("cpu", priority=1)
        get_provider()
        assert "pip install sagellm-backend-ascend" in caplog.text

    def test_an_empty_environment_explains_itself(self, distributions):
        with pytest.raises(UnavailableError, match="no distribution registers") as caught:
            get_provider()
        assert "sagellm-backend-cpu" in caught.value.hint
