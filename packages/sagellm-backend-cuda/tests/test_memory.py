"""Registration through the CUDA runtime, on one that is made up."""

from __future__ import annotations

import pytest
import torch

from sagellm_backend.capability import Feature
from sagellm_backend.cuda.memory import RuntimeRegistrar
from sagellm_backend.cuda.provider import CUDAProvider, DCUProvider


class Runtime:
    def __init__(self, result=0):
        self.calls, self.result = [], result

    def cudaHostRegister(self, *arguments):
        self.calls.append(("register", *arguments))
        return self.result

    def cudaHostUnregister(self, *arguments):
        self.calls.append(("unregister", *arguments))
        return self.result

    def cudaGetErrorString(self, result):
        return f"error {result}"


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    return made


def test_ranges_are_registered_for_every_device(runtime):
    RuntimeRegistrar().register(0x1000, 4096)
    RuntimeRegistrar().unregister(0x1000)
    assert runtime.calls == [("register", 0x1000, 4096, 1), ("unregister", 0x1000)]


@pytest.mark.parametrize("call", ["register", "unregister"])
def test_a_refusal_is_raised_and_not_left_for_the_next_launch(runtime, monkeypatch, call):
    launched = []

    def ones(*size, device):
        launched.append(device)
        raise RuntimeError("CUDA error: the last one")

    monkeypatch.setattr(torch, "ones", ones)
    runtime.result = 712
    arguments = (0x1000, 4096) if call == "register" else (0x1000,)
    with pytest.raises(RuntimeError, match="error 712"):
        getattr(RuntimeRegistrar(), call)(*arguments)
    assert launched == ["cuda"]


@pytest.mark.parametrize("provider", [CUDAProvider, DCUProvider])
def test_both_backends_register(provider):
    assert isinstance(provider.registrar, RuntimeRegistrar)
    assert Feature.HOST_REGISTER not in provider.withheld
