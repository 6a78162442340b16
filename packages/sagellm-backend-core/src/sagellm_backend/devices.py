"""Device names, device facts, and the cheap look at which accelerators this machine has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from sagellm_backend.checks import shown
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError

_DEVICE = re.compile(r"([a-z_][a-z0-9_]*)(?::(0|[1-9][0-9]{0,4}))?")


def parse_device_str(device: str) -> tuple[str, int | None]:
    """Split ``"cuda:1"`` into ``("cuda", 1)`` and ``"cpu"`` into ``("cpu", None)``.

    Raises :class:`InvalidArgumentError` for anything that is not ``type`` or ``type:index``.
    """
    text: object = device
    match = _DEVICE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidArgumentError(
            f"{shown(device)} is not a device.", hint="Write it as 'cpu', 'cuda:0' or 'npu:1'."
        )
    return match[1], None if match[2] is None else int(match[2])


def format_device_str(device_type: str, index: int | None = None) -> str:
    """The inverse of :func:`parse_device_str`."""
    text = device_type if index is None else f"{device_type}:{index}"
    parse_device_str(text)
    return text


@dataclass(frozen=True)
class DeviceInfo:
    """What a probe knows of one device without starting its driver.

    ``total_memory_bytes`` is ``None`` where only the driver could tell.
    """

    index: int
    name: str
    total_memory_bytes: int | None = None
    dtypes: tuple[DType, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sighting:
    """An accelerator that the operating system shows, whether or not a package can drive it.

    ``nodes`` are the paths of its device nodes, one for each device, where it has such.
    """

    backend: str
    count: int
    evidence: str
    nodes: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        """The distribution that drives it."""
        return f"sagellm-backend-{'cuda' if self.backend == 'dcu' else self.backend}"

    def denied(self, root: Path = Path("/")) -> str | None:
        """The first device node that this user may not read and write; nothing is opened."""
        mode = os.R_OK | os.W_OK
        return next((n for n in self.nodes if not os.access(root / n.lstrip("/"), mode)), None)


def seen_accelerators(root: Path = Path("/")) -> tuple[Sighting, ...]:
    """The accelerators whose device nodes exist, in the order of the backends' priority.

    Looks at file names only: nothing is opened, no driver is started, no variable is read.
    ``root`` stands for ``/`` in tests.
    """
    sightings = (
        _nodes(root, "cuda", "dev", "nvidia") or _wsl(root),
        _hygon(root),
        _nodes(root, "ascend", "dev", "davinci"),
        _nodes(root, "kunlun", "dev", "xpu"),
    )
    return tuple(found for found in sightings if found is not None)


def sighting_of(backend: str, root: Path = Path("/")) -> Sighting | None:
    """The sighting of one backend's hardware, or ``None``."""
    return next((seen for seen in seen_accelerators(root) if seen.backend == backend), None)


def visible_devices(
    devices: tuple[DeviceInfo, ...], selection: str | None
) -> tuple[DeviceInfo, ...]:
    """The devices that a ``*_VISIBLE_DEVICES`` variable leaves, renumbered from 0.

    ``selection`` is the variable's value: ``None`` leaves all. As the drivers do, it is read up to
    the first number that is no device's, so that ``""`` and ``"-1"`` hide everything. A UUID is
    looked up among the devices' facts; one that is not there (a MIG slice, a UUID that only the
    driver knows) leaves all, for the driver to tell.
    """
    if selection is None:
        return devices
    chosen: list[DeviceInfo] = []
    for item in (part.strip() for part in selection.split(",")):
        named = [device for device in devices if _is_named(device, item)]
        if not named and item[:1].isalpha():
            return devices
        if not named:
            break
        chosen.append(replace(named[0], index=len(chosen)))
    return tuple(chosen)


def _is_named(device: DeviceInfo, item: str) -> bool:
    if item.isdecimal():
        return device.index == int(item)
    return bool(item) and device.facts.get("uuid", "").startswith(item)


def _nodes(root: Path, backend: str, folder: str, prefix: str) -> Sighting | None:
    try:
        names = [path.name for path in (root / folder).iterdir()]
    except OSError:
        return None
    numbers = sorted(
        int(name.removeprefix(prefix)) for name in names if re.fullmatch(prefix + "[0-9]+", name)
    )
    nodes = tuple(f"/{folder}/{prefix}{number}" for number in numbers)
    return Sighting(backend, len(nodes), nodes[0], nodes) if nodes else None


def _wsl(root: Path) -> Sighting | None:
    library = root / "usr/lib/wsl/lib/libcuda.so.1"
    return Sighting("cuda", 1, "/usr/lib/wsl/lib/libcuda.so.1") if library.exists() else None


def _hygon(root: Path) -> Sighting | None:
    # /dev/kfd is shared with AMD's own cards; Hygon's driver stack installs /opt/hyhal.
    if not ((root / "dev/kfd").exists() and (root / "opt/hyhal").exists()):
        return None
    cards = _nodes(root, "dcu", "dev/dri", "renderD")
    nodes = cards.nodes if cards else ("/dev/kfd",)
    return Sighting("dcu", len(nodes), "/dev/kfd and /opt/hyhal", nodes)
