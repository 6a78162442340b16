"""Specs and probes refuse nonsense at once, and build what they name."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from sagellm_backend import spec as spec_module
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, UnavailableError
from sagellm_backend.spec import (
    PROVIDER_METHODS,
    BackendSpec,
    Probe,
    ProbeState,
    contract_problem,
    describe,
)

GOOD = {
    "name": "chip",
    "device_type": "chip",
    "priority": 5,
    "array_framework": "torch",
    "probe": lambda: Probe.absent("none here"),
    "factory": "chip_vendor.provider:create",
}
FakeProvider = type("FakeProvider", (), dict.fromkeys(PROVIDER_METHODS, lambda self: None))


def make(**changes):
    return BackendSpec(**{**GOOD, **changes})


def test_a_good_spec_keeps_its_fields_and_is_frozen():
    spec = make(aliases=("chip2", "old-chip"))
    assert spec.names == ("chip", "chip2", "old-chip")
    assert spec.automatic
    assert spec.contract == spec_module.CONTRACT_VERSION
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "auto", "'auto' cannot name"),
        ("name", "Chip", "'Chip' cannot name"),
        ("name", "", "'' cannot name"),
        ("name", "2chip", "'2chip' cannot name"),
        ("name", None, "None cannot name"),
        ("aliases", ("chip",), "repeat"),
        ("aliases", ("a", "a"), "repeat"),
        ("aliases", "ab", "aliases must be a tuple"),
        ("aliases", ["ab"], "aliases must be a tuple"),
        ("aliases", ("AUTO",), "cannot name"),
        ("device_type", "", "device_type"),
        ("device_type", "cuda:0", "device_type"),
        ("priority", "5", "priority"),
        ("priority", True, "priority"),
        ("array_framework", "jax", "torch, paddle, numpy"),
        ("contract", (1,), "contract"),
        ("contract", (1, -1), "contract"),
        ("contract", "1.0", "contract"),
        ("contract", [1, 0], "contract"),
        ("probe", None, "probe"),
        ("factory", "module.function", "factory"),
        ("factory", "module:", "factory"),
        ("factory", 3, "factory"),
    ],
)
def test_a_bad_field_is_refused(field, value, said):
    with pytest.raises(InvalidArgumentError, match=said):
        make(**{field: value})


def test_probe_states_have_what_they_need():
    device = DeviceInfo(0, "x")
    assert Probe.available(device) == Probe(ProbeState.AVAILABLE, (device,))
    assert Probe.absent("no", "buy one").remedy == "buy one"
    assert Probe.broken("bad", "mend", (device,)).devices == (device,)
    assert Probe.unsupported("later").state is ProbeState.UNSUPPORTED
    with pytest.raises(InvalidArgumentError, match="devices"):
        Probe.available()
    with pytest.raises(InvalidArgumentError, match="why"):
        Probe.absent("")
    with pytest.raises(InvalidArgumentError, match="ProbeState"):
        Probe("available", (device,))


def test_making_a_spec_imports_nothing():
    make(factory="no_such_module_at_all.provider:create")
    assert "no_such_module_at_all" not in sys.modules


def test_calling_a_spec_builds_a_new_provider_with_the_config():
    seen = []

    def factory(config):
        seen.append(config)
        return FakeProvider()

    spec = make(factory=factory)
    first, second = spec(), spec({"device": 1})
    assert isinstance(first, FakeProvider)
    assert first is not second
    assert seen == [None, {"device": 1}]


def test_a_missing_module_is_unavailable_and_names_package_and_cause():
    spec = make(factory="no_such_module_at_all:create", package="vendor-chip")
    with pytest.raises(UnavailableError, match=r"vendor-chip.*no_such_module_at_all") as caught:
        spec()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("error", [OSError("driver gone"), SystemExit(3), AssertionError()])
def test_whatever_a_factory_raises_is_wrapped(error):
    def factory(config):
        raise error

    with pytest.raises(UnavailableError, match=type(error).__name__) as caught:
        make(factory=factory)()
    assert caught.value.__cause__ is error


def test_backend_errors_of_a_factory_pass_unchanged():
    refusal = CapabilityError("provider", "chip", "none yet")

    def factory(config):
        raise refusal

    with pytest.raises(CapabilityError) as caught:
        make(factory=factory)()
    assert caught.value is refusal


def test_keyboard_interrupt_passes():
    def factory(config):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(factory=factory)()


@pytest.mark.parametrize("product", [None, object(), FakeProvider])
def test_a_product_that_is_no_provider_is_refused_with_what_it_lacks(product):
    if product is FakeProvider:
        product = FakeProvider()
        product.kv_block_migrate = None
    with pytest.raises(UnavailableError, match=r"lacks .*kv_block_migrate"):
        make(factory=lambda config: product)()


@pytest.mark.parametrize(
    ("theirs", "who"),
    [
        ((2, 3), None),
        ((2, 0), None),
        ((2, 4), "Upgrade sagellm-backend-core"),
        ((3, 0), "Upgrade sagellm-backend-core"),
        ((1, 9), "Upgrade the package"),
    ],
)
def test_contracts_fit_within_a_major_up_to_core_s_minor(theirs, who, monkeypatch):
    monkeypatch.setattr(spec_module, "CONTRACT_VERSION", (2, 3))
    problem = contract_problem(theirs)
    if who is None:
        assert problem is None
    else:
        reason, remedy = problem
        assert "2.3" in reason
        assert ".".join(map(str, theirs)) in reason
        assert who in remedy


def test_describe_is_one_line():
    assert describe(ValueError("first\nsecond")) == "ValueError: first"
    assert describe(KeyError()) == "KeyError"
