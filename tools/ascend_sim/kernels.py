"""Puts the reference kernels before torch_npu's, whose own need the vendor's hardware.

Every operator of aten that torch has a kernel for on the CPU is taken, except what needs none:
allocation, views and copies stay torch_npu's.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

from ascend_sim.build import KERNELS

_THEIRS = frozenset(
    (
        "_copy_from",
        "_copy_from_and_resize",
        "_foreach_copy_",
        "_lazy_clone",
        "_local_scalar_dense",
        "_pin_memory",
        "_reshape_alias",
        "_to_copy",
        "as_strided",
        "as_strided_",
        "clone",
        "contiguous",
        "copy_",
        "copy_memory_",
        "empty",
        "empty_like",
        "empty_strided",
        "empty_with_format",
        "empty_with_swapped_memory",
        "is_pinned",
        "is_set_to",
        "new_empty_strided",
        "record_stream",
        "resize_",
        "resize_as_",
        "set_",
        "unsafe_empty_with_format",
        "view",
    )
)


@cache
def install() -> None:
    """Take over the operators of aten. torch_npu is imported already, and found the simulator."""
    torch.ops.load_library(str(Path(os.environ["ASCEND_HOME_PATH"]) / "lib64" / KERNELS))
    torch.ops.ascend_sim.take_copies()
    take("aten", [name for name in _names() if _needs_kernel(name)])


def take(namespace: str, names: list[str], host: tuple[str, ...] = ()) -> None:
    """Take over operators of a namespace, which have kernels for the CPU.

    Their tensors lie on the device, except the arguments named in ``host``.
    """
    torch.ops.ascend_sim.take(namespace, names, list(host))


def _names() -> list[str]:
    registered = torch._C._dispatch_get_registrations_for_dispatch_key  # noqa: SLF001
    found = {name for key in ("PrivateUse1", "CPU") for name in registered(key)}
    return sorted(name.removeprefix("aten::") for name in found if name.startswith("aten::"))


def _needs_kernel(name: str) -> bool:
    operator, _, overload = name.partition(".")
    computed = torch._C._dispatch_has_computed_kernel_for_dispatch_key  # noqa: SLF001
    if operator in _THEIRS or not computed(f"aten::{name}", "CPU"):
        return False
    schema = torch._C._get_schema(f"aten::{operator}", overload)  # noqa: SLF001
    # What returns a view of its argument moves no data.
    return not any(item.alias_info and not item.alias_info.is_write for item in schema.returns)
