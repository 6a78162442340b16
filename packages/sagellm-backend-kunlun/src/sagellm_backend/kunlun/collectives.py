"""Joining a group of processes: over BKCL between XPUs, over gloo elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddle.base import core

from sagellm_backend.checks import check_int, check_seconds
from sagellm_backend.collectives import Communicator
from sagellm_backend.errors import CommError, InvalidArgumentError
from sagellm_backend.kunlun.bkcl import BkclCommunicator
from sagellm_backend.kunlun.comm_local import LocalCommunicator
from sagellm_backend.kunlun.communicator import refuse_backend
from sagellm_backend.kunlun.gloo import GlooCommunicator
from sagellm_backend.kunlun.rendezvous import await_store, meet, resolve_launch
from sagellm_backend.spec import describe

if TYPE_CHECKING:
    from sagellm_backend.kunlun.communicator import KunlunCommunicator
    from sagellm_backend.kunlun.provider import KunlunProvider

_LONGEST_S = 10**8
_MOST = 1 << 20


def join(
    provider: KunlunProvider,
    rank: int | None = None,
    world_size: int | None = None,
    init_method: str | None = None,
    timeout_s: float = 300.0,
) -> Communicator:
    """Join the group of all processes that the arguments or the environment describe.

    What is not given comes from the variables of torchrun (RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT) or of ``paddle.distributed.launch``. One process without ``init_method`` needs no
    network.

    Raises :class:`InvalidArgumentError` for what is missing, :class:`CapabilityError` where Paddle
    lacks the library, :class:`CommTimeoutError` naming the ranks that did not come within
    ``timeout_s``, and :class:`CommError` for other failures.
    """
    if check_seconds("timeout_s", timeout_s) > _LONGEST_S:
        raise InvalidArgumentError(f"timeout_s must be at most {_LONGEST_S:,}, not {timeout_s:g}.")
    if world_size is not None:
        world_size = check_int("world_size", world_size, high=_MOST)
    if rank is not None:
        rank = check_int("rank", rank, low=0, high=(world_size or _MOST) - 1)
    if init_method is None and world_size == 1:
        return LocalCommunicator(provider, timeout_s)
    kind: type[KunlunCommunicator] = (
        GlooCommunicator if provider.runtime.simulated else BkclCommunicator
    )
    word = "ProcessGroupGloo" if provider.runtime.simulated else "ProcessGroupBKCL"
    if not hasattr(core, word):
        raise refuse_backend(provider.name, word.removeprefix("ProcessGroup").lower())
    rank, world_size, address = resolve_launch(rank, world_size, init_method)
    check_int("world_size", world_size, high=_MOST)
    check_int("rank", rank, low=0, high=world_size - 1)
    if world_size == 1:
        return LocalCommunicator(provider, timeout_s)
    try:
        meeting = meet(address, rank, world_size, timeout_s)
        if rank:
            await_store(meeting, timeout_s)
        limit = max(int(timeout_s), 1)
        store = core.TCPStore(meeting.host, meeting.port, rank == 0, world_size, limit)
        return kind(provider, store, rank, world_size, meeting.group, timeout_s)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, (CommError, InvalidArgumentError)):
            raise
        raise CommError(
            f"join failed on rank {rank} of {world_size}: {describe(error)}",
            hint="Check that the address can be reached from every rank.",
            rank=rank,
            world_size=world_size,
        ) from error
