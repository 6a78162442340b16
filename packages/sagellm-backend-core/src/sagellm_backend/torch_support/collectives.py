"""Joining a group over torch.distributed: gloo, nccl, hccl, or whatever a chip registers there."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from sagellm_backend.checks import check_int, check_seconds
from sagellm_backend.collectives import Communicator
from sagellm_backend.errors import CapabilityError, ErrorCode, InvalidArgumentError
from sagellm_backend.torch_support.comm_errors import comm_errors
from sagellm_backend.torch_support.comm_groups import destroy, settle
from sagellm_backend.torch_support.comm_local import LocalCommunicator
from sagellm_backend.torch_support.communicator import TorchCommunicator
from sagellm_backend.torch_support.rendezvous import meet, resolve_launch

_LONGEST_S = 10**8  # torch counts in milliseconds of limited range
_MOST = 1 << 20


def join(
    provider_name: str,
    backend: str,
    device: torch.device,
    rank: int | None = None,
    world_size: int | None = None,
    init_method: str | None = None,
    timeout_s: float = 300.0,
    kind: type[TorchCommunicator] = TorchCommunicator,
) -> Communicator:
    """Join the group of all processes that the arguments or the environment describe.

    ``backend`` is torch.distributed's word. What is not given comes from RANK, WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT. One process without ``init_method`` needs no network. Where
    torch.distributed has a default group already, ours is a new group of the same processes beside
    it, ``init_method`` is not used, and the default group stays when ours is closed. ``kind`` is the
    class of what is returned where a library needs its own.

    Raises :class:`InvalidArgumentError` for what is missing or contradicts a default group,
    :class:`CapabilityError` where torch lacks ``backend``, :class:`CommTimeoutError` naming the
    ranks that did not come within ``timeout_s``, and :class:`CommError` for other failures.
    """
    if check_seconds("timeout_s", timeout_s) > _LONGEST_S:
        raise InvalidArgumentError(f"timeout_s must be at most {_LONGEST_S:,}, not {timeout_s:g}.")
    if world_size is not None:
        world_size = check_int("world_size", world_size, high=_MOST)
    if rank is not None:
        rank = check_int("rank", rank, low=0, high=(world_size or _MOST) - 1)
    if init_method is None and world_size == 1:
        return LocalCommunicator(provider_name, device, timeout_s)
    if not dist.is_available() or not dist.is_backend_available(backend):
        raise CapabilityError(
            f"collectives over {backend}", provider_name, "this torch was built without it."
        )
    attach = dist.is_initialized()
    if attach:
        rank, world_size = _agree(rank, world_size)
        address = ""
    else:
        rank, world_size, address = resolve_launch(rank, world_size, init_method)
    check_int("world_size", world_size, high=_MOST)
    check_int("rank", rank, low=0, high=world_size - 1)
    if init_method is None and world_size == 1:
        return LocalCommunicator(provider_name, device, timeout_s)
    with comm_errors("join", rank, world_size, timeout_s), kind.creating():
        if attach:
            group = dist.new_group(
                timeout=timedelta(seconds=timeout_s),
                backend=backend,
                pg_options=kind.options(timeout_s),
            )
        else:
            options = kind.options(timeout_s)
            group = _create_default(backend, address, rank, world_size, timeout_s, options)
        settle(group)
    ours = not attach or _Default.users > 0
    _Default.users += ours
    leave = _leave_default if ours else destroy
    return kind(provider_name, backend, device, group, list(range(world_size)), timeout_s, leave)


class _Default:
    """The default group, where we made it: it goes with the last communicator that joined."""

    users: ClassVar[int] = 0


def _create_default(
    backend: str, address: str, rank: int, world_size: int, timeout_s: float, options: Any
) -> Any:
    store = meet(address, rank, world_size, timeout_s)
    hook = sys.excepthook
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
            pg_options=options,
        )
    except BaseException:
        # torch can fail when its default group is there already, and would keep it.
        destroy(None)
        raise
    finally:
        sys.excepthook = hook  # torch wraps it anew for each group, and never takes it back
    return dist.group.WORLD


def _agree(rank: int | None, world_size: int | None) -> tuple[int, int]:
    theirs = dist.get_rank(), dist.get_world_size()
    if rank not in {None, theirs[0]} or world_size not in {None, theirs[1]}:
        raise InvalidArgumentError(
            f"torch.distributed is initialised in this process as rank {theirs[0]} of {theirs[1]}, "
            f"not as rank {rank} of {world_size}.",
            hint="Leave rank and world_size away to join that group, or destroy it first.",
            code=ErrorCode.COMM_RANK_MISMATCH,
        )
    return theirs


def _leave_default(group: Any) -> None:
    _Default.users -= 1
    try:
        if group is not dist.group.WORLD:
            destroy(group)
    finally:
        if not _Default.users:
            destroy(dist.group.WORLD)


__all__ = ["TorchCommunicator", "join"]
