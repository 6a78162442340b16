"""CUDAProvider over the simulated device: all but the driver, and batches of copies made up."""

from __future__ import annotations

import os
import types
from pathlib import Path
from unittest import mock

import simdev
import torch
from fake_cuda.bindings import Driver
from torch.utils._python_dispatch import _get_current_dispatch_mode

from sagellm_backend.capability import Feature
from sagellm_backend.cuda import startup
from sagellm_backend.cuda.batches import DriverBatches
from sagellm_backend.cuda.kv import CUDAKVCopyPlan
from sagellm_backend.cuda.provider import CUDAProvider
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.spec import BackendSpec, Probe

CALLS = Path(os.environ.get("FAKE_CUDA_CALLS", os.devnull))
"""Where the size of each batch is noted."""


class Batches(DriverBatches):
    """Copies of tensors over the addresses, so that they are work of a stream."""

    def __init__(self, pools):
        super().__init__(Driver(self.execute))
        self.pages = [pool.pages for pool in pools]

    def copy(self, targets, sources, sizes, stream):
        super().copy(targets, sources, sizes, stream)
        with CALLS.open("a") as file:
            file.write(f"{sizes.size}\n")

    def execute(self, target, source, size, stream):
        pages = next(pages for pages in self.pages if not pages.is_cpu)
        current = simdev.module.current_stream(pages.device)
        queue = torch.Stream(
            stream_id=stream, device_index=pages.device.index, device_type=current.device_type
        )
        with simdev.module.stream(queue):
            self.at(target, size).copy_(self.at(source, size), non_blocking=True)

    def at(self, address, size):
        for pages in self.pages:
            flat = pages.view(torch.uint8).view(-1)
            start = address - flat.data_ptr()
            if start >= 0 and start + size <= flat.numel():
                return flat[start : start + size]
        raise AssertionError(f"{address:#x} lies in no pool")


class Plan(CUDAKVCopyPlan):
    """A stream's number stands for its handle."""

    @staticmethod
    def _handle_of(queue):
        return queue.stream_id


def is_captured():
    """Whether this thread's calls are being recorded by a simulated graph."""
    mode = _get_current_dispatch_mode()
    return mode is not None and type(mode).__name__ == "_Recorder"


class Simulated(CUDAProvider):
    name = "cudasim"
    device_type = "simdev"
    simulated = True
    flush_subnormals = (DType.BF16,)
    registrar = simdev.module.Registrar()
    withheld = frozenset({Feature.COLLECTIVE})
    module = types.SimpleNamespace(
        **{name: value for name, value in vars(simdev.module).items() if name[0] != "_"},
        get_device_capability=lambda device: (7, 5),
        is_current_stream_capturing=is_captured,
        can_device_access_peer=lambda one, other: one < other,
    )

    def __init__(self, config=None):
        with mock.patch.multiple(startup, begin=lambda *_: None, occupy=lambda *_: None):
            super().__init__(config)

    def _kv_copy_plan(self, source, target):
        batches = Batches((source, target))
        plan = Plan(source, target, self.module, batches)
        plan._given = batches
        return plan


SPEC = BackendSpec(
    name="cudasim",
    device_type="simdev",
    priority=1,
    automatic=False,
    array_framework="torch",
    probe=lambda: Probe.available(DeviceInfo(0, "one"), DeviceInfo(1, "two")),
    factory=Simulated,
    contract=(1, 0),
    package="cudasim",
)
