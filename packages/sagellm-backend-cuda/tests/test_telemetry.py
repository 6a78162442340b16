"""Telemetry on made-up bindings, and its calls against torch's own signatures."""

from __future__ import annotations

import inspect

import pytest
import torch

from sagellm_backend.cuda import startup, telemetry
from sagellm_backend.cuda.provider import CUDAProvider
from sagellm_backend.errors import CapabilityError

READINGS = {
    "temperature": 41,
    "power_draw": 123_500,
    "utilization": 87,
    "memory_usage": 30,
    "clock_rate": 1980,
}


class Module:
    """The calls of torch.cuda; each takes a device, and may fail."""

    def __init__(self, **faults):
        self.asked = []
        for name, value in READINGS.items():
            setattr(self, name, self._call(value, faults.get(name)))

    def _call(self, value, fault):
        def call(device):
            self.asked.append(device)
            if fault:
                raise fault
            return value

        return call


def test_a_reading_has_units():
    module = Module()
    assert telemetry.read(module, "cuda:1", "cuda") == (41, 123.5, 87, 30, 1980)
    assert set(module.asked) == {torch.device("cuda:1")}


def test_what_a_card_does_not_measure_is_none():
    class NVMLError(Exception):
        pass

    found = telemetry.read(Module(utilization=NVMLError("Not Supported")), "cuda:0", "cuda")
    assert found.utilization_percent is None
    assert found.temperature_c == 41


def test_missing_bindings_are_named_with_the_extra():
    fault = ModuleNotFoundError("nvidia-ml-py does not seem to be installed")
    with pytest.raises(CapabilityError, match="nvidia-ml-py") as caught:
        telemetry.read(Module(power_draw=fault), "cuda:0", "cuda")
    assert "sagellm-backend-cuda[nvml]" in caught.value.hint


@pytest.mark.parametrize("name", READINGS)
def test_torch_has_each_call(name):
    inspect.signature(getattr(torch.cuda, name)).bind(torch.device("cuda:0"))


@pytest.mark.parametrize(("asked", "given"), [(None, "cuda:1"), ("cuda:0", "cuda:0")])
def test_a_provider_reads_its_default_device_or_another(monkeypatch, asked, given):
    module = Module()
    module.device_count = lambda: 2
    module.get_device_capability = lambda device: (9, 0)
    monkeypatch.setattr(startup, "begin", lambda *_: None)
    monkeypatch.setattr(startup, "occupy", lambda *_: None)
    monkeypatch.setattr(CUDAProvider, "module", module)
    monkeypatch.setattr(CUDAProvider, "_memory_limit", lambda *_: 1 << 30)
    assert CUDAProvider({"device": 1}).telemetry(asked).temperature_c == 41
    assert set(module.asked) == {torch.device(given)}
