"""What the operating system's files tell of the cards, without a driver call."""

from __future__ import annotations

from pathlib import Path

from sagellm_backend.cuda import drivers
from sagellm_backend.cuda.drivers import read
from sagellm_backend.devices import DeviceInfo, Sighting
from sagellm_backend.dtypes import DType

DTYPES = (DType.FP32, DType.FP16, DType.BF16)


def nvidia_cards(root: Path, seen: Sighting) -> tuple[DeviceInfo, ...]:
    """The cards behind ``/dev/nvidia*``; name and UUID where ``/proc/driver/nvidia`` has them.

    Memory is known to the driver alone. The order is that of the device nodes; CUDA's own default
    order (fastest first) can differ where the cards do.
    """
    by_minor = {fields.get("Device Minor"): fields for fields in _information(root)}
    version = drivers.installed(root)
    cards = []
    for index in range(seen.count):
        minor = seen.nodes[index].removeprefix("/dev/nvidia") if seen.nodes else None
        fields = by_minor.get(minor, {})
        facts = {
            "uuid": fields.get("GPU UUID", ""),
            "bus": fields.get("Bus Location", ""),
            "driver": version,
        }
        known = {key: value for key, value in facts.items() if value}
        name = fields.get("Model", "NVIDIA GPU")
        cards.append(DeviceInfo(index, name, dtypes=DTYPES, facts=known))
    return tuple(cards)


def hygon_cards(root: Path, seen: Sighting) -> tuple[DeviceInfo, ...]:
    """The cards behind ``/dev/dri/renderD*``, with their memory where ``/sys`` has it."""
    return tuple(
        DeviceInfo(index, "Hygon DCU", _vram(root, node), DTYPES)
        for index, node in enumerate(seen.nodes)
    )


def _information(root: Path) -> list[dict[str, str]]:
    found = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        pairs = (line.partition(":") for line in read(path).splitlines())
        found.append({key.strip(): value.strip() for key, _, value in pairs})
    return found


def _vram(root: Path, node: str) -> int | None:
    name = node.rpartition("/")[2]
    text = read(root / "sys/class/drm" / name / "device/mem_info_vram_total").strip()
    return int(text) if text.isdecimal() else None
