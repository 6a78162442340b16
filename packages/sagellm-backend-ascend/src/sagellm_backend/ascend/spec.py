"""The spec of the ``ascend`` backend: NPUs, CANN and torch_npu, found without importing any.

``import torch`` itself fails where torch_npu is installed without CANN, so the probe never tries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from sagellm_backend import frameworks
from sagellm_backend.devices import DeviceInfo, Sighting, sighting_of, visible_devices
from sagellm_backend.dtypes import DType
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

NO_PROVIDER = "sagellm-backend-ascend 0.1 has no provider yet"
NEXT_STEP = "Set SAGELLM_BACKEND=cpu to run on the CPU, or install a later sagellm-backend-ascend."

_ROOT = Path("/")
_SELECTION = "ASCEND_RT_VISIBLE_DEVICES"
_HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_SET_ENV = "source /usr/local/Ascend/ascend-toolkit/set_env.sh (install CANN where it is missing)."


def probe(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> Probe:
    """NPUs, CANN and a torch_npu that fits torch. ``root`` stands for ``/`` in tests."""
    seen = sighting_of("ascend", root)
    if seen is None:
        return Probe.absent(
            "no Ascend NPU: /dev/davinci0 does not exist",
            "Where there should be one, install the Ascend driver; in a container, pass "
            "--device /dev/davinci0.",
        )
    devices = visible_devices(_devices(root, seen), environ.get(_SELECTION))
    if not devices:
        return Probe.absent(
            f"{_SELECTION}={environ.get(_SELECTION)!r} hides {seen.evidence}",
            f"Unset {_SELECTION} or list devices in it.",
        )
    fault = _denied(root, seen) or _cann_fault(root, environ) or _torch_fault()
    if fault:
        return Probe.broken(fault[0], fault[1], devices)
    names = f"{len(devices)} x {devices[0].name}"
    return Probe.unsupported(f"{names} seen, but {NO_PROVIDER}", NEXT_STEP, devices)


def _devices(root: Path, seen: Sighting) -> tuple[DeviceInfo, ...]:
    version = _driver_version(root)
    facts = {"driver": version} if version else {}
    dtypes = (DType.FP32, DType.FP16, DType.BF16)
    return tuple(
        DeviceInfo(index, "Ascend NPU", dtypes=dtypes, facts=dict(facts))
        for index in range(seen.count)
    )


def _driver_version(root: Path) -> str | None:
    try:
        text = (root / "usr/local/Ascend/driver/version.info").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^Version=(\S+)", text, re.MULTILINE)
    return found[1] if found else None


def _denied(root: Path, seen: Sighting) -> tuple[str, str] | None:
    node = seen.denied(root)
    if node is None:
        return None
    return f"this user may not open {node}", "Join the group HwHiAiUser, which owns it."


def _cann_fault(root: Path, environ: Mapping[str, str]) -> tuple[str, str] | None:
    name = next((name for name in _HOMES if environ.get(name)), None)
    if name is None:
        return "CANN is not set up: ASCEND_HOME_PATH is not set", _SET_ENV
    if not (root / environ[name].lstrip("/")).is_dir():
        return f"{name}={environ[name]} is not a directory", _SET_ENV
    return None


def _torch_fault() -> tuple[str, str] | None:
    torch, npu = frameworks.torch_build(), frameworks.version_of("torch_npu")
    if torch is None:
        return "torch is not installed", "pip install torch torch_npu, of one version."
    if npu is None or not frameworks.is_installed("torch_npu"):
        return "torch_npu is not installed", f"pip install torch_npu=={_series(torch.version)}.*"
    if _series(torch.version) != _series(npu):
        return (
            f"torch_npu {npu} does not fit torch {torch.version}",
            f"pip install torch_npu=={_series(torch.version)}.*",
        )
    return None


def _series(version: str) -> str:
    """The part in which torch and torch_npu must agree: 2.7.1.post2 and 2.7.1+cpu are 2.7.1."""
    return ".".join(re.findall(r"\d+", version)[:3])


SPEC = BackendSpec(
    name="ascend",
    device_type="npu",
    priority=PRIORITIES["ascend"],
    array_framework="torch",
    probe=probe,
    factory="sagellm_backend.ascend.provider:create_ascend_backend",
    aliases=("ascend_cann", "npu", "pytorch-ascend"),
    contract=(1, 0),
    package="sagellm-backend-ascend",
)
