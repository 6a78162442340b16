"""Failures of the device: late ones, and those that the switch puts back to their call."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from npu_l0.library import VendorRefusalError

from sagellm_backend.ascend import kernels
from sagellm_backend.capability import Feature
from sagellm_backend.errors import CapabilityError, OutOfMemoryError, UnavailableError
from sagellm_backend.torch_support import errors

FAULT = (
    "The Inner error is reported as above. NPU function error: aclrtSynchronizeStream, "
    "error code is {}"
)


@pytest.fixture(autouse=True)
def switch(monkeypatch):
    """The switch of NPUs, for the device that stands for one."""
    monkeypatch.setitem(errors._SWITCHES, "simdev", "ASCEND_LAUNCH_BLOCKING")
    monkeypatch.delenv("ASCEND_LAUNCH_BLOCKING", raising=False)


def arrays(backend):
    x = backend.from_numpy(np.ones((4, 8), np.float16))
    return x, backend.from_numpy(np.ones(8, np.float16))


def test_a_failure_found_by_an_operation_may_be_an_earlier_one_s(make, monkeypatch):
    def fail(x, weight, eps):
        raise RuntimeError(FAULT.format(561000))

    monkeypatch.setitem(kernels.KERNELS, "rms_norm", (fail, kernels.no_limits))
    backend = make()
    with pytest.raises(UnavailableError, match="rms_norm failed on simdev:0") as caught:
        backend.get_kernel("rms_norm", dtype="fp16")(*arrays(backend), 1e-6)
    assert "earlier call" in caught.value.hint
    assert "ASCEND_LAUNCH_BLOCKING=1" in caught.value.hint


def test_a_device_that_is_lost_during_work_says_so_wherever_it_is_noticed(make, monkeypatch):
    backend = make()
    x, weight = arrays(backend)
    kernel = backend.get_kernel("rms_norm", dtype="fp16")
    kernel(x, weight, 1e-6)

    def fail(device=None):
        raise RuntimeError(FAULT.format(507015))

    with monkeypatch.context() as change:
        change.setattr(torch.npu, "synchronize", fail)
        for notices in (backend.synchronize, lambda: backend.to_numpy(x)):
            with pytest.raises(UnavailableError, match="507015") as caught:
                notices()
            assert "end it and start another" in caught.value.hint


def test_what_the_arguments_or_the_memory_lack_is_told_as_before(make, monkeypatch):
    def refuse(x, weight, eps):
        raise VendorRefusalError("gamma is too long")

    def exhaust(x, weight, eps):
        raise torch.OutOfMemoryError("NPU out of memory.")

    for kernel, error, said in (
        (refuse, UnavailableError, "the fault lies in the kernel"),
        (exhaust, OutOfMemoryError, "make the batch smaller"),
    ):
        monkeypatch.setitem(kernels.KERNELS, "rms_norm", (kernel, kernels.no_limits))
        backend = make()
        with pytest.raises(error) as caught:
            backend.get_kernel("rms_norm", dtype="fp16")(*arrays(backend), 1e-6)
        assert said in str(caught.value)


class Faulty:
    """The current stream of a device on which the third kernel fails."""

    def __init__(self):
        self.waits = 0

    def synchronize(self):
        self.waits += 1
        if self.waits == 3:
            raise RuntimeError(FAULT.format(507035))


def work(backend):
    """Four operations, one after the other."""
    x, weight = arrays(backend)
    for name in ("rms_norm", "silu_and_mul", "softmax", "gelu"):
        rest = (weight, 1e-6) if name == "rms_norm" else ()
        backend.get_kernel(name, dtype="fp16")(x, *rest)


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_switch_puts_a_failure_back_to_the_operation_that_caused_it(
    make, machine, monkeypatch, value
):
    monkeypatch.setenv("ASCEND_LAUNCH_BLOCKING", value)
    backend, stream = make(), Faulty()
    with monkeypatch.context() as change:
        change.setattr(machine.npu, "current_stream", lambda device=None: stream)
        if value == "0":
            work(backend)
            assert not stream.waits
            return
        with pytest.raises(UnavailableError, match="507035") as caught:
            work(backend)
    assert caught.value.message.startswith("softmax failed on simdev:0: ")
    assert "end it and start another" in caught.value.hint


def test_what_is_waited_for_cannot_be_captured(make, monkeypatch):
    assert Feature.GRAPH in make().capability().features
    monkeypatch.setenv("ASCEND_LAUNCH_BLOCKING", "1")
    backend = make()
    with pytest.raises(CapabilityError, match="graph"):
        backend.capture(lambda: None, {})
