"""How process groups of torch.distributed begin and end."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def settle(group: Any) -> None:
    """Wait until every rank has connected to every other.

    Gloo connects when a group is made: a rank that closes it at once, or ends the server of
    addresses, would fail the ranks that are still connecting. Other libraries connect later.
    """
    if dist.get_backend(group) == "gloo":
        dist.barrier(group=group)


def destroy(group: Any) -> None:
    """Destroy a process group that may be gone already. Whatever is raised, torch has it no more."""
    # Whoever owns the default group may have destroyed everything before us.
    if not dist.is_initialized():
        return
    try:
        dist.destroy_process_group(group)
    except RuntimeError:
        # Work that failed on the device is told again here, and torch would keep the group.
        dist.distributed_c10d._abort_process_group(group)  # noqa: SLF001 - newer than 2.4
        raise


__all__ = ["destroy", "settle"]
