"""The machine: its processor, and the memory that this process may use. Imports no framework."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType

_ROOT = Path("/")
# The instruction sets that decide which kernels pay.
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "asimd",
    "sve",
    "bf16",
)


def processor(root: Path = _ROOT) -> DeviceInfo:
    """The host's processor as a device. ``root`` stands for ``/`` in tests."""
    fields = _cpuinfo(root)
    name = fields.get("model name") or platform.processor() or platform.machine() or "CPU"
    # "flags" on x86, "Features" on ARM.
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    facts = {
        "cores": str(_cores()),
        "architecture": platform.machine(),
        "features": " ".join(feature for feature in _FEATURES if feature in flags),
    }
    total, _ = memory(root)
    return DeviceInfo(0, name, total or None, (DType.FP32, DType.BF16, DType.FP16), facts)


def memory(root: Path = _ROOT) -> tuple[int, int]:
    """(total, free) bytes: the machine's, or what the tightest control group leaves of them.

    Where the system does not say what is free (macOS), that is the total; (0, 0) where it says
    nothing.
    """
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0, 0
    free = _available(root) or total
    for limit, usage in _group_limits(root):
        total, free = min(total, limit), min(free, max(0, limit - usage))
    return total, free


def _available(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, usage) of every control group above this process that has a limit."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        # "0::/path" is version 2; "4:memory:/path" is the memory controller of version 1.
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            limit, usage = (_read(base / folder / name).strip() for name in names)
            if limit.isdecimal():
                yield int(limit), int(usage) if usage.isdecimal() else 0


def _cpuinfo(root: Path) -> dict[str, str]:
    """The fields of the first processor."""
    text = _read(root / "proc/cpuinfo").partition("\n\n")[0]
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
