"""Which NVIDIA driver a torch needs, and which one the operating system's files show."""

from __future__ import annotations

import re
from pathlib import Path

LEAST = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
"""The oldest Linux driver for each major release of CUDA.

Source: NVIDIA, *CUDA Compatibility*, minor version compatibility. Programs built for any minor
release of that major run on it.
"""

_VERSION = re.compile(r"\s(\d+\.\d+(?:\.\d+)?)\s")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def installed(root: Path) -> str:
    """The version of the loaded driver; empty where ``/proc`` does not say (WSL, or no driver)."""
    found = _VERSION.search(read(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def too_old(driver: str, cuda: str, root: Path) -> str:
    """The driver that a torch for this CUDA release needs, if ``driver`` is older; else empty.

    Empty too where one of the two is unknown, and where the forward-compatibility libraries
    (``cuda-compat``) are installed: then only the driver can tell.
    """
    least = LEAST.get(numbers(cuda)[0]) if numbers(cuda) else None
    if not driver or least is None or numbers(driver) >= least:
        return ""
    if any((root / "usr/local").glob("cuda*/compat/libcuda.so*")):
        return ""
    return ".".join(map(str, least))


def pci_card(root: Path) -> str | None:
    """The bus address of a display or 3D controller of NVIDIA, whether or not a driver has it."""
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor, kind = (read(folder / name).strip() for name in ("vendor", "class"))
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            return folder.name
    return None


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparisons."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def read(path: Path) -> str:
    """The text of a file of the operating system; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
