"""``torch.npu`` as the device module of a provider: what is here goes before what is there.

Importing this needs torch alone; its names need torch_npu.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch


class Stream:
    """Makes streams of ``torch.npu``, which take a priority and ignore it.

    Their ``priority_range()`` raises, so that this has none.
    """

    def __new__(cls, device: torch.device | None = None) -> Any:
        """A new stream of ``device``."""
        return torch.npu.Stream(device=device)  # type: ignore[attr-defined] # by torch_npu

    query: Any = None
    """Streams answer without waiting."""


def allow_nz() -> None:
    """Let arrays of this process be cast to FRACTAL_NZ: without it, a cast leaves them as they are.

    The setting is the process's, and stays.
    """
    torch.npu.config.allow_internal_format = True  # type: ignore[attr-defined] # by torch_npu


def group_options(settings: Mapping[str, Any]) -> Any:
    """Options of a process group over HCCL, with ``settings`` of HCCL by torch_npu's names."""
    library = import_module("torch_npu")._C._distributed_c10d  # noqa: SLF001 - the documented place
    chosen = library.ProcessGroupHCCL.Options()
    chosen.hccl_config = dict(settings)
    return chosen


def __getattr__(name: str) -> Any:
    return getattr(torch.npu, name)  # type: ignore[attr-defined] # by torch_npu
