"""The spec of the reference backend. It is there wherever core is, and taken only by name."""

from __future__ import annotations

from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

DEVICE_COUNT = 2
"""Devices that the reference backend simulates."""

_COMPUTED = (DType.FP32, DType.BF16, DType.FP16)


def probe() -> Probe:
    """Always available: the devices are simulated."""
    return Probe.available(
        *(
            DeviceInfo(index, "NumPy reference device", dtypes=_COMPUTED)
            for index in range(DEVICE_COUNT)
        )
    )


SPEC = BackendSpec(
    name="reference",
    device_type="reference",
    priority=PRIORITIES["reference"],
    array_framework="numpy",
    probe=probe,
    factory="sagellm_backend.reference.provider:create_reference_backend",
    contract=(1, 0),
    automatic=False,
    package="sagellm-backend-core",
)
