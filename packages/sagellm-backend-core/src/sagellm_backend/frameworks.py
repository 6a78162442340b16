"""Which array frameworks are installed, read from metadata and file text: nothing is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_FIELD = re.compile(r"^(__version__|cuda|hip)\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", re.MULTILINE)


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch: its version, and the CUDA or HIP release that it was built for."""

    version: str
    cuda: str | None = None
    hip: str | None = None

    @property
    def words(self) -> str:
        """The build as a person says it, such as ``torch 2.13.0+cpu (CPU build)``."""
        if self.hip:
            kind = f"built for ROCm/HIP {self.hip}"
        elif self.cuda:
            kind = f"built for CUDA {self.cuda}"
        else:
            kind = "CPU build"
        return f"torch {self.version} ({kind})"

    @property
    def release(self) -> tuple[int, ...]:
        """(major, minor) of the version, for comparisons."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2])


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found. It is not imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, or ``None``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> TorchBuild | None:
    """The torch that ``import torch`` would take, read from its ``version.py``; or ``None``."""
    try:
        found = find_spec("torch")
    except (ImportError, ValueError):
        return None
    if found is None:
        return None
    fields = _version_fields(Path(found.origin).parent) if found.origin else {}
    version = fields.get("__version__") or version_of("torch") or "of unknown version"
    return TorchBuild(version, fields.get("cuda"), fields.get("hip"))


def _version_fields(folder: Path) -> dict[str, str]:
    try:
        text = (folder / "version.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return dict(_FIELD.findall(text))
