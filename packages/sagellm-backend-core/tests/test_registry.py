"""The registry builds what was chosen and takes in backends of this process."""

from __future__ import annotations

import threading

import pytest

from sagellm_backend.errors import CapabilityError, InvalidArgumentError, UnavailableError
from sagellm_backend.registry import (
    choose,
    get_provider,
    is_provider_available,
    list_providers,
    register_provider,
)
from sagellm_backend.spec import PROVIDER_METHODS, BackendSpec, Probe

FakeProvider = type("FakeProvider", (), dict.fromkeys(PROVIDER_METHODS, lambda self: None))


def make_spec(name, **changes):
    """A spec whose hardware is absent."""
    fields = {
        "device_type": "cpu",
        "priority": 1,
        "array_framework": "torch",
        "probe": lambda: Probe.absent("none here"),
        "factory": lambda config: FakeProvider(),
    }
    return BackendSpec(name=name, **{**fields, **changes})


class TestBuilding:
    def test_a_failing_factory_names_distribution_and_cause(self, distributions):
        distributions.add_backend("chip", provider="raise OSError('libchip.so is missing')")
        with pytest.raises(
            UnavailableError, match=r"vendor-chip 1\.0.*OSError: libchip.so"
        ) as caught:
            get_provider("chip")
        assert isinstance(caught.value.__cause__, OSError)

    def test_a_refusal_of_the_factory_passes_unchanged(self, distributions):
        source = """
            from sagellm_backend.errors import CapabilityError
            def Provider(config):
                raise CapabilityError("provider", "chip", "none yet")
        """
        distributions.add_backend("chip", provider=source)
        with pytest.raises(CapabilityError, match="none yet"):
            get_provider("chip")

    def test_a_product_that_is_no_provider_is_refused(self, distributions):
        distributions.add_backend("chip", provider="def Provider(config): return 3")
        with pytest.raises(UnavailableError, match="int, which is no provider: it lacks"):
            get_provider("chip")


class TestRegistering:
    def test_a_spec_takes_part_in_everything(self, distributions):
        distributions.add_backend("cpu", priority=1)
        register_provider(make_spec("mine", aliases=("my_alias",), priority=5))
        assert list_providers() == ["mine", "cpu"]
        assert not is_provider_available("mine")
        with pytest.raises(UnavailableError, match="none here"):
            get_provider("my_alias")
        assert choose().chosen.name == "cpu"

    def test_a_registered_spec_is_probed_anew_each_time(self, distributions):
        answers = iter([Probe.absent("not yet"), Probe.broken("now", "mend")])
        register_provider(make_spec("mine", probe=lambda: next(answers)))
        for said in ("not yet", "now"):
            with pytest.raises(UnavailableError, match=said):
                get_provider("mine")

    def test_the_v01_call_takes_name_and_factory(self, distributions):
        register_provider("Mine", lambda config=None: FakeProvider())
        assert list_providers() == ["mine"]
        assert not is_provider_available("mine"), "what cannot be probed is not called available"
        assert isinstance(get_provider("mine"), FakeProvider)
        with pytest.raises(UnavailableError):
            get_provider()

    def test_a_class_of_providers_is_a_factory(self, distributions):
        register_provider("mine", FakeProvider)
        assert isinstance(get_provider("mine"), FakeProvider)

    @pytest.mark.parametrize("factory", [None, "module:function", 3, object])
    def test_what_cannot_build_is_refused_at_once(self, distributions, factory):
        with pytest.raises(InvalidArgumentError, match="factory"):
            register_provider("mine", factory)
        assert list_providers() == []

    @pytest.mark.parametrize("name", ["", "auto", "two words", None, 3])
    def test_an_impossible_name_is_refused(self, distributions, name):
        with pytest.raises(InvalidArgumentError):
            register_provider(name, FakeProvider)
        assert list_providers() == []

    @pytest.mark.parametrize("taken", ["cpu", "host", "mine", "my_alias"])
    def test_a_taken_name_is_refused_with_its_owner(self, distributions, taken):
        distributions.add_backend("cpu", distribution="vendor-cpu", aliases=("host",))
        register_provider(make_spec("mine", aliases=("my_alias",)))
        owner = "vendor-cpu 1.0" if taken in ("cpu", "host") else "this process"
        with pytest.raises(InvalidArgumentError, match=f"'{taken}' is taken by {owner}"):
            register_provider(taken, FakeProvider)
        with pytest.raises(InvalidArgumentError, match=f"'{taken}' is taken by {owner}"):
            register_provider(make_spec("other", aliases=(taken,)))
        assert list_providers() == ["cpu", "mine"]

    def test_a_spec_for_another_contract_is_refused(self, distributions):
        with pytest.raises(InvalidArgumentError, match=r"contract 9\.0.*speaks 1\.0"):
            register_provider(make_spec("mine", contract=(9, 0)))

    def test_a_spec_with_a_second_factory_is_refused(self, distributions):
        with pytest.raises(InvalidArgumentError, match="its own factory"):
            register_provider(make_spec("mine"), FakeProvider)


def test_available_means_that_the_probe_says_so(distributions):
    distributions.add_backend("good", aliases=("fine",))
    distributions.add_backend("absent", probe="Probe.absent('no card')")
    distributions.add_backend("failing", probe="1 / 0")
    distributions.add("vendor", {"unloadable": "gone:SPEC"})
    assert is_provider_available(" Fine ")
    for name in ("absent", "failing", "unloadable", "unknown", ""):
        assert not is_provider_available(name)


def test_names_are_listed_highest_priority_first(distributions):
    distributions.add_backend("low", priority=1, probe="Probe.absent('no card')")
    distributions.add_backend("high", priority=9)
    distributions.add("vendor", {"unloadable": "gone:SPEC"})
    assert list_providers() == ["high", "low"]


def test_threads_may_register_and_build_at_once(distributions):
    distributions.add_backend("cpu")
    barrier, failures = threading.Barrier(8), []

    def work(index):
        barrier.wait()
        try:
            register_provider(f"mine{index}", FakeProvider)
            get_provider(f"mine{index}")
            get_provider("cpu")
        except Exception as error:  # noqa: BLE001 - any failure counts
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list_providers()) == 9


def test_one_of_two_threads_gets_a_contested_name(distributions):
    barrier, outcomes = threading.Barrier(4), []

    def work():
        barrier.wait()
        try:
            register_provider("mine", FakeProvider)
        except InvalidArgumentError:
            outcomes.append("refused")
        else:
            outcomes.append("registered")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["registered"]
