"""Device names, device facts, and the cheap look at which accelerators this machine has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError

_DEVICE = re.compile(r"([a-z_][a-z0-9_]*)(?::(0|[1-9][0-9]{0,4}))?")


def parse_device_str(device: str) -> tuple[str, int | None]:
    """Split ``"cuda:1"`` into ``("cuda", 1)`` and ``"cpu"`` into ``("cpu", None)``.

    Raises :class:`InvalidArgumentError` for anything that is not ``type`` or ``type:index``.
    """
    match = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    if match is None:
        raise InvalidArgumentError(
            f"{device!r} is not a device.", hint="Write it as 'cpu', 'cuda:0' or 'npu:1'."
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
    """An accelerator that the operating system shows, whether or not a package can drive it."""

    backend: str
    count: int
    evidence: str

    @property
    def package(self) -> str:
        """The distribution that drives it."""
        return f"sagellm-backend-{'cuda' if self.backend == 'dcu' else self.backend}"


def seen_accelerators(root: Path = Path("/")) -> tuple[Sighting, ...]:
    """The accelerators whose device nodes exist, in the order of the backends' priority.

    Looks at file names only: nothing is opened, no driver is started, no variable is read.
    ``root`` stands for ``/`` in tests.
    """
    sightings = (
        _nodes(root, "cuda", "dev", r"nvidia[0-9]+"),
        _wsl(root),
        _hygon(root),
        _nodes(root, "ascend", "dev", r"davinci[0-9]+"),
        _nodes(root, "kunlun", "dev", r"xpu[0-9]+"),
    )
    return tuple(found for found in sightings if found is not None)


def _nodes(root: Path, backend: str, folder: str, pattern: str) -> Sighting | None:
    try:
        names = os.listdir(root / folder)
    except OSError:
        return None
    nodes = sorted(name for name in names if re.fullmatch(pattern, name))
    return Sighting(backend, len(nodes), f"/{folder}/{nodes[0]}") if nodes else None


def _wsl(root: Path) -> Sighting | None:
    library = root / "usr/lib/wsl/lib/libcuda.so.1"
    return Sighting("cuda", 1, "/usr/lib/wsl/lib/libcuda.so.1") if library.exists() else None


def _hygon(root: Path) -> Sighting | None:
    # /dev/kfd is shared with AMD's own cards; Hygon's driver stack installs /opt/hyhal.
    if not ((root / "dev/kfd").exists() and (root / "opt/hyhal").exists()):
        return None
    cards = _nodes(root, "dcu", "dev/dri", r"renderD[0-9]+")
    return Sighting("dcu", cards.count if cards else 1, "/dev/kfd and /opt/hyhal")
