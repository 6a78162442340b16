"""The spec of the ``kunlun`` backend: XPUs and the XPU build of Paddle, which is not imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sagellm_backend.devices import DeviceInfo, sighting_of, visible_devices
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kunlun import places, stack
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

SELECTION = "XPU_VISIBLE_DEVICES"

_ROOT = Path("/")


def probe(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> Probe:
    """XPUs and a Paddle built for them. ``root`` stands for ``/`` in tests."""
    try:
        named = places.places(environ)
    except InvalidArgumentError as error:
        return Probe.broken(error.message.rstrip("."), error.hint or "")
    return _probe_places(named) if named else _probe_xpu(root, environ)


def _probe_places(named: tuple[str, ...]) -> Probe:
    devices = tuple(
        DeviceInfo(index, f"Paddle place {place}", dtypes=(DType.FP32,), facts={"level": "L1"})
        for index, place in enumerate(named)
    )
    fault = stack.cpu_fault()
    if fault:
        return Probe.broken(f"{places.VARIABLE} is set: {fault[0]}", fault[1], devices)
    return Probe.available(*devices)


def _probe_xpu(root: Path, environ: Mapping[str, str]) -> Probe:
    seen = sighting_of("kunlun", root)
    if seen is None:
        return _no_device()
    dtypes = (DType.FP32, DType.FP16, DType.BF16)
    cards = tuple(DeviceInfo(index, "Kunlun XPU", dtypes=dtypes) for index in range(seen.count))
    devices = visible_devices(cards, environ.get(SELECTION))
    if not devices:
        return Probe.absent(
            f"{SELECTION}={environ.get(SELECTION)!r} hides {seen.evidence}",
            f"Unset {SELECTION} or list devices in it.",
        )
    denied = seen.denied(root)
    if denied:
        return Probe.broken(f"this user may not open {denied}", "Join its group.", devices)
    fault = stack.xpu_fault()
    return Probe.broken(fault[0], fault[1], devices) if fault else Probe.available(*devices)


def _no_device() -> Probe:
    remedy = (
        "Where there should be one, install the Kunlun driver; in a container, pass "
        "--device /dev/xpu0 and --device /dev/xpuctrl."
    )
    version = stack.xpu_version()
    if version:
        return Probe.absent(
            f"paddlepaddle-xpu {version} is installed, and there is no Kunlun XPU: "
            "/dev/xpu0 does not exist",
            remedy,
        )
    return Probe.absent("no Kunlun XPU: /dev/xpu0 does not exist", remedy)


def _device_type() -> str:
    """What Paddle calls the devices of this process; the probe says what is wrong with a name."""
    try:
        return places.device_type_of(places.places(os.environ))
    except InvalidArgumentError:
        return places.XPU


SPEC = BackendSpec(
    name="kunlun",
    device_type=_device_type(),
    priority=PRIORITIES["kunlun"],
    array_framework="paddle",
    probe=probe,
    factory="sagellm_backend.kunlun.startup:create_kunlun_backend",
    aliases=("kunlun_xpu", "xpu"),
    contract=(1, 0),
    package="sagellm-backend-kunlun",
)
