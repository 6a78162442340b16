"""What stands between an Ascend card and torch: driver, CANN, torch and torch_npu.

Read from files and metadata. No framework is imported, no library loaded, no driver started.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sagellm_backend import frameworks
from sagellm_backend.ascend.soc import PCI_VENDOR

Fault = tuple[str, str]
"""What is wrong, and what to do."""

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
SELECTION = "ASCEND_RT_VISIBLE_DEVICES"
SET_ENV = "source /usr/local/Ascend/ascend-toolkit/set_env.sh (install CANN where it is missing)."
CPU_TORCH = "https://download.pytorch.org/whl/cpu"

_HOMES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
_RUNTIME = "libascendcl.so"
_ACCELERATOR = "0x1200"  # the PCI class of processing accelerators


def driver_version(root: Path) -> str:
    """The version of the installed driver; empty where its file does not say."""
    return _field(root / "usr/local/Ascend/driver/version.info", "Version")


def cann_version(root: Path, environ: Mapping[str, str]) -> str:
    """The version of CANN; empty where none is set up, or its files do not say."""
    home = _home(environ)
    if home is None:
        return ""
    files = sorted((root / home[1].lstrip("/")).glob("**/ascend_toolkit_install.info"))
    return next((found for file in files if (found := _field(file, "version"))), "")


def pci_devices(root: Path) -> tuple[str, ...]:
    """The PCI device numbers of Huawei's accelerators, by bus address, driver or none."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor, device, kind = (_read(folder / name) for name in ("vendor", "device", "class"))
        if vendor == PCI_VENDOR and kind.startswith(_ACCELERATOR):
            found.append(device)
    return tuple(found)


def cann_fault(root: Path, environ: Mapping[str, str]) -> Fault | None:
    """Why CANN cannot be used."""
    home = _home(environ)
    if home is None:
        return "CANN is not set up: ASCEND_HOME_PATH is not set", SET_ENV
    name, value = home
    folder = root / value.lstrip("/")
    if not folder.is_dir():
        return f"{name}={value} is not a directory", SET_ENV
    if not any(folder.glob(f"**/{_RUNTIME}")):
        return f"CANN in {name}={value} has no {_RUNTIME}", "Install the whole CANN toolkit there."
    return None


def torch_fault() -> Fault | None:
    """Why torch and torch_npu cannot be used, together or at all."""
    torch, npu = frameworks.torch_build(), frameworks.version_of("torch_npu")
    if torch is None:
        return (
            "torch is not installed",
            f"pip install torch --index-url {CPU_TORCH} && pip install torch_npu, of one version.",
        )
    series = _series(torch.version)
    if torch.cuda or torch.hip:
        return (
            f"{torch.words} cannot share a process with torch_npu, which takes a CPU build",
            f"pip install --force-reinstall torch=={series} --index-url {CPU_TORCH}",
        )
    if npu is None or not frameworks.is_installed("torch_npu"):
        return "torch_npu is not installed", f"pip install torch_npu=={series}.*"
    if series != _series(npu):
        return (
            f"torch_npu {npu} does not fit torch {torch.version}",
            f"pip install torch_npu=={series}.*",
        )
    return None


def _home(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that says where CANN is, and its value."""
    return next(((name, environ[name]) for name in _HOMES if environ.get(name)), None)


def _series(version: str) -> str:
    """The part in which torch and torch_npu must agree: 2.7.1.post2 and 2.7.1+cpu are 2.7.1."""
    return ".".join(re.findall(r"\d+", version)[:3])


def _field(path: Path, name: str) -> str:
    found = re.search(rf"^{name}=(\S+)", _read(path), re.MULTILINE)
    return found[1] if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
