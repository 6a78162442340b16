"""The spec of the ``ascend`` backend: NPUs, CANN and torch_npu, found without importing any.

``import torch`` itself fails where torch_npu is installed without CANN, so the probe never tries.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sagellm_backend.ascend import soc, stack
from sagellm_backend.devices import DeviceInfo, Sighting, sighting_of, visible_devices
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

_ROOT = Path("/")


def probe(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> Probe:
    """NPUs, CANN and a torch_npu that fits torch. ``root`` stands for ``/`` in tests."""
    seen = sighting_of("ascend", root)
    if seen is None:
        return _no_device(root)
    selection = environ.get(stack.SELECTION)
    devices = visible_devices(_devices(root, seen, environ), selection)
    if not devices:
        return Probe.absent(
            f"{stack.SELECTION}={selection!r} hides {seen.evidence}",
            f"Unset {stack.SELECTION} or list devices in it.",
        )
    fault = _denied(root, seen) or stack.cann_fault(root, environ) or stack.torch_fault()
    return Probe.broken(fault[0], fault[1], devices) if fault else Probe.available(*devices)


def _no_device(root: Path) -> Probe:
    """Why there is no ``/dev/davinci*``: no card, no driver, or a container without its devices."""
    cards, driver = stack.pci_devices(root), stack.driver_version(root)
    if driver:
        return Probe.absent(
            f"Ascend driver {driver} is installed and no NPU is given to this container",
            "Start the container with --device /dev/davinci0 --device /dev/davinci_manager.",
        )
    if cards:
        return Probe.broken(
            f"{len(cards)} Ascend cards have no driver: /dev/davinci0 does not exist",
            "Install the Ascend driver and firmware; in a container, pass --device /dev/davinci0.",
        )
    return Probe.absent(
        "no Ascend NPU: /dev/davinci0 does not exist",
        "Where there should be one, install the Ascend driver; in a container, pass "
        "--device /dev/davinci0.",
    )


def _devices(root: Path, seen: Sighting, environ: Mapping[str, str]) -> tuple[DeviceInfo, ...]:
    facts = {"driver": stack.driver_version(root), "cann": stack.cann_version(root, environ)}
    numbers = set(stack.pci_devices(root))
    family = soc.family_of_pci(numbers.pop()) if len(numbers) == 1 else soc.UNKNOWN
    if family is not soc.UNKNOWN:
        facts["family"] = family.name
    known = {name: value for name, value in facts.items() if value}
    return tuple(
        DeviceInfo(index, "Ascend NPU", dtypes=family.dtypes, facts=dict(known))
        for index in range(seen.count)
    )


def _denied(root: Path, seen: Sighting) -> stack.Fault | None:
    node = seen.denied(root)
    if node is None:
        return None
    return f"this user may not open {node}", "Join the group HwHiAiUser, which owns it."


SPEC = BackendSpec(
    name="ascend",
    device_type="npu",
    priority=PRIORITIES["ascend"],
    array_framework="torch",
    probe=probe,
    factory="sagellm_backend.ascend.startup:create_ascend_backend",
    aliases=("ascend_cann", "npu", "pytorch-ascend"),
    contract=(1, 0),
    package="sagellm-backend-ascend",
)
