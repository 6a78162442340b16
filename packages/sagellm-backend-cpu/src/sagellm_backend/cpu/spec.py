"""The spec of the ``cpu`` backend: what the processor is, and whether torch is installed."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from sagellm_backend import frameworks
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

OLDEST_TORCH = (2, 4)

_ROOT = Path("/")
_INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
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


def probe(root: Path = _ROOT) -> Probe:
    """The processor, with the memory that this process may use. ``root`` stands for ``/``."""
    device = processor(root)
    torch = frameworks.torch_build()
    if torch is None:
        return Probe.broken("torch is not installed", _INSTALL, (device,))
    if torch.release and torch.release < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        reason = f"torch {torch.version} is older than {needed}"
        return Probe.broken(reason, f"pip install 'torch>={needed}'", (device,))
    return Probe.available(device)


def processor(root: Path = _ROOT) -> DeviceInfo:
    """The host's processor as a device."""
    fields = _cpuinfo(root)
    name = fields.get("model name") or platform.processor() or platform.machine() or "CPU"
    # "flags" on x86, "Features" on ARM.
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    facts = {
        "cores": str(_cores()),
        "architecture": platform.machine(),
        "features": " ".join(feature for feature in _FEATURES if feature in flags),
    }
    return DeviceInfo(0, name, _memory(root), (DType.FP32, DType.BF16, DType.FP16), facts)


def _cpuinfo(root: Path) -> dict[str, str]:
    """The fields of the first processor."""
    text = _read(root / "proc/cpuinfo").partition("\n\n")[0]
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory(root: Path) -> int | None:
    """Bytes of memory, or of the smallest control-group limit above this process."""
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return min([installed, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        # "0::/path" is version 2; "4:memory:/path" is the memory controller of version 1.
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, leaf = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, leaf = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            text = _read(base / folder / leaf).strip()
            if text.isdecimal():
                limits.append(int(text))
    return limits


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


SPEC = BackendSpec(
    name="cpu",
    device_type="cpu",
    priority=PRIORITIES["cpu"],
    array_framework="torch",
    probe=probe,
    factory="sagellm_backend.cpu.provider:create_cpu_backend",
    contract=(1, 0),
    package="sagellm-backend-cpu",
)
