"""The backend ``ascend-l0``: the real provider on the NPU of L0, for whoever runs the suite on it.

What it declares of the simulated device is the device's: no collectives, bf16 without subnormals.
"""

from __future__ import annotations

import os

from sagellm_backend import DType
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.spec import BackendSpec, Probe


def probe():
    return Probe.available(*(DeviceInfo(index, "simulated NPU") for index in range(2)))


def build(config=None):
    """A provider on the chip whose SoC version ``L0_CHIP`` holds."""
    import npu_l0.attention
    import npu_l0.formats
    import npu_l0.kernels
    import npu_l0.module
    import torch
    from npu_l0.library import CHIP

    from sagellm_backend.ascend import provider

    CHIP.version = int(os.environ.get("L0_CHIP", "222"))
    torch.npu = npu_l0.module.make()
    for kind in (provider.AscendProvider, provider.AscendFP16Provider):
        kind.name, kind.device_type, kind.comm_backend = "ascend-l0", "simdev", ""
        kind.simulated, kind.flush_subnormals = True, (DType.BF16,)
    return provider.create(config)


SPEC = BackendSpec(
    name="ascend-l0",
    device_type="simdev",
    priority=1,
    automatic=False,
    array_framework="torch",
    probe=probe,
    factory="l0_backend:build",
    contract=(1, 0),
    package="ascend-l0",
)
