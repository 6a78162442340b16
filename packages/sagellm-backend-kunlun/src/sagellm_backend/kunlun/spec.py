"""The spec of the ``kunlun`` backend: XPUs and the XPU build of Paddle, which is not imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sagellm_backend import frameworks
from sagellm_backend.devices import DeviceInfo, sighting_of, visible_devices
from sagellm_backend.dtypes import DType
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

NO_PROVIDER = "sagellm-backend-kunlun 0.1 has no provider yet"
NEXT_STEP = "Set SAGELLM_BACKEND=cpu to run on the CPU, or install a later sagellm-backend-kunlun."

_ROOT = Path("/")
_SELECTION = "XPU_VISIBLE_DEVICES"
_INSTALL = (
    "pip install paddlepaddle-xpu -i https://www.paddlepaddle.org.cn/packages/stable/xpu-p800/"
)


def probe(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> Probe:
    """XPUs and a Paddle built for them. ``root`` stands for ``/`` in tests."""
    seen = sighting_of("kunlun", root)
    if seen is None:
        return Probe.absent(
            "no Kunlun XPU: /dev/xpu0 does not exist",
            "Where there should be one, install the Kunlun driver; in a container, pass "
            "--device /dev/xpu0 and --device /dev/xpuctrl.",
        )
    dtypes = (DType.FP32, DType.FP16, DType.BF16)
    cards = tuple(DeviceInfo(index, "Kunlun XPU", dtypes=dtypes) for index in range(seen.count))
    devices = visible_devices(cards, environ.get(_SELECTION))
    if not devices:
        return Probe.absent(
            f"{_SELECTION}={environ.get(_SELECTION)!r} hides {seen.evidence}",
            f"Unset {_SELECTION} or list devices in it.",
        )
    denied = seen.denied(root)
    if denied:
        return Probe.broken(f"this user may not open {denied}", "Join its group.", devices)
    fault = _paddle_fault()
    if fault:
        return Probe.broken(fault[0], fault[1], devices)
    names = f"{len(devices)} x {devices[0].name}"
    return Probe.unsupported(f"{names} seen, but {NO_PROVIDER}", NEXT_STEP, devices)


def _paddle_fault() -> tuple[str, str] | None:
    # Both distributions install the module `paddle`, so only metadata tells them apart.
    xpu, plain = (frameworks.version_of(name) for name in ("paddlepaddle-xpu", "paddlepaddle"))
    if xpu and plain:
        return (
            f"paddlepaddle {plain} and paddlepaddle-xpu {xpu} overwrite one another's files",
            f"pip uninstall paddlepaddle paddlepaddle-xpu, then {_INSTALL}",
        )
    if plain:
        remedy = f"pip uninstall paddlepaddle, then {_INSTALL}"
        return f"paddlepaddle {plain} cannot drive an XPU: it is not the XPU build", remedy
    if xpu and frameworks.is_installed("paddle"):
        return None
    if frameworks.is_installed("torch_xmlir"):
        return "xpytorch (torch_xmlir) is installed, and this backend speaks Paddle", _INSTALL
    return "paddlepaddle-xpu is not installed", _INSTALL


SPEC = BackendSpec(
    name="kunlun",
    device_type="xpu",
    priority=PRIORITIES["kunlun"],
    array_framework="paddle",
    probe=probe,
    factory="sagellm_backend.kunlun.provider:create_kunlun_backend",
    aliases=("kunlun_xpu", "xpu"),
    contract=(1, 0),
    package="sagellm-backend-kunlun",
)
