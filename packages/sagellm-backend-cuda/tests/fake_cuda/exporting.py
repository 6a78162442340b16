"""CUDAProvider over torch's shared host memory, which stands for memory that CUDA's IPC shares."""

from __future__ import annotations

import types
from unittest import mock

import torch

from sagellm_backend.capability import Feature
from sagellm_backend.cuda import export, startup
from sagellm_backend.cuda.provider import CUDAProvider
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.spec import BackendSpec, Probe

OPENED = []
"""What was opened, and on which device."""


def share(storage):
    """As ``_share_cuda_`` without the index of the device: eight fields of three types."""
    manager, name, size = storage._share_filename_cpu_()
    return name, size, 0, manager, 0, b"event", False


def open_shared(device, how):
    name, size, _, manager, *_ = how
    OPENED.append(device)
    return torch.UntypedStorage._new_shared_filename_cpu(manager, name, size)


export.share, export.open_shared = share, open_shared


class Exporting(CUDAProvider):
    name = "exporting"
    device_type = "cpu"
    registrar = None
    withheld = frozenset({Feature.COLLECTIVE, Feature.KV_PEER_COPY})
    module = types.SimpleNamespace(
        device_count=lambda: 1,
        get_device_name=lambda device: "a card",
        get_device_capability=lambda device: (7, 5),
        get_device_properties=lambda device: types.SimpleNamespace(uuid=f"card-{device}"),
        mem_get_info=lambda device: (1 << 33, 1 << 34),
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
    )

    def __init__(self, config=None):
        with mock.patch.multiple(startup, begin=lambda *_: None, occupy=lambda *_: None):
            super().__init__(config)


SPEC = BackendSpec(
    name="exporting",
    device_type="cpu",
    priority=1,
    automatic=False,
    array_framework="torch",
    probe=lambda: Probe.available(DeviceInfo(0, "one")),
    factory=Exporting,
    contract=(1, 0),
    package="exporting",
)
