"""How the processes of a group find each other, before torch.distributed connects them.

Rank 0 draws a token for each new group and publishes it in the store; the others sign in under it,
once each; when all have signed, rank 0 says go. Keys that an earlier group left in the same store
(a file of a run that crashed, a server that rank 0 has not closed yet) carry another token, so
nobody connects to a peer of the past, and an address can be used again and again.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import torch.distributed as dist

from sagellm_backend.errors import CommTimeoutError, ErrorCode, InvalidArgumentError

if TYPE_CHECKING:
    from torch.distributed import Store

_POLL_S = 0.01
_TOKEN_KEY = "sagellm/token"  # noqa: S105 - the name of a key in the store
_METHODS = "Pass init_method as tcp://host:port or file:///path, or start with torchrun."


def resolve_launch(
    rank: int | None, world_size: int | None, init_method: str | None
) -> tuple[int, int, str]:
    """Fill what was not given from the environment that torchrun sets.

    Returns (rank, world size, address); an address from the environment is ``env://host:port``.
    Raises :class:`InvalidArgumentError` that names every missing variable.
    """
    from_env = init_method in {None, "env://"}
    wanted = [
        *(["RANK"] if rank is None else []),
        *(["WORLD_SIZE"] if world_size is None else []),
        *(["MASTER_ADDR", "MASTER_PORT"] if from_env else []),
    ]
    missing = [name for name in wanted if not os.environ.get(name)]
    if missing:
        raise InvalidArgumentError(
            f"The group is not known: {', '.join(missing)} not given and not in the environment.",
            hint="Start with torchrun, or pass rank, world_size and init_method "
            "(tcp://host:port or file:///path).",
        )
    rank = _env_int("RANK") if rank is None else rank
    world_size = _env_int("WORLD_SIZE") if world_size is None else world_size
    if init_method is None or from_env:
        host = os.environ["MASTER_ADDR"]
        host = f"[{host}]" if ":" in host else host
        return rank, world_size, f"env://{host}:{_env_int('MASTER_PORT')}"
    return rank, world_size, init_method


def meet(address: str, rank: int, world_size: int, timeout_s: float) -> Store:
    """Wait until every rank is at ``address``, and return a store for this one group.

    Raises :class:`CommTimeoutError` that names who is missing, :class:`InvalidArgumentError` for an
    address that cannot be one, and what torch raises for one that cannot be reached.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        store = _open_store(address, rank, world_size, timeout_s)
        try:
            token = (
                _gather(store, world_size, deadline, timeout_s)
                if rank == 0
                else _sign_in(store, rank, world_size, deadline, timeout_s)
            )
        except dist.DistNetworkError:
            # The server of an earlier group of ours has just gone; the next one will come.
            if rank == 0 or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return dist.PrefixStore(token, store)


def _open_store(address: str, rank: int, world_size: int, timeout_s: float) -> Store:
    try:
        parts = urlparse(address)
        host, port = parts.hostname, parts.port
    except (TypeError, ValueError, AttributeError):
        raise InvalidArgumentError(f"{address!r} is no address.", hint=_METHODS) from None
    if parts.scheme == "file":
        path = Path(parts.path)
        if parts.netloc or not path.is_absolute() or not path.parent.is_dir() or path.is_dir():
            raise InvalidArgumentError(
                f"{address!r} does not name a file in a folder that exists.",
                hint="Write file:///path, with an absolute path that all ranks see.",
            )
        # Told how many processes there are, it would delete the file under the next group.
        return dist.FileStore(str(path))
    if parts.scheme not in {"tcp", "env"} or not host or port is None:
        raise InvalidArgumentError(f"{address!r} is no address to meet at.", hint=_METHODS)
    agent_serves = (
        parts.scheme == "env" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    )
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0 and not agent_serves,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
    )


def _gather(store: Store, world_size: int, deadline: float, timeout_s: float) -> str:
    token = f"{world_size}/{uuid.uuid4().hex}"
    store.set(_TOKEN_KEY, token)
    keys = {rank: f"{token}/{rank}" for rank in range(1, world_size)}
    while keys and not store.check(list(keys.values())):
        if time.monotonic() > deadline:
            missing = [rank for rank, key in keys.items() if not store.check([key])]
            listed = ", ".join(map(str, missing))
            raise _not_met(f"ranks {listed} of {world_size} did not come", 0, world_size, timeout_s)
        time.sleep(_POLL_S)
    store.set(f"{token}/go", "")
    return token


def _sign_in(store: Store, rank: int, world_size: int, deadline: float, timeout_s: float) -> str:
    seen, problem = "", "rank 0 did not come"
    signed = False
    while True:
        token = store.get(_TOKEN_KEY).decode() if store.check([_TOKEN_KEY]) else ""
        if token and token != seen:
            seen, theirs = token, token.partition("/")[0]
            signed = theirs == str(world_size) and store.add(f"{token}/{rank}", 1) == 1
            if signed:
                problem = "not every other rank came"
            elif theirs != str(world_size):
                problem = f"rank 0 waits for a group of {theirs} processes"
            else:
                problem = f"a process of rank {rank} had joined already"
        if signed and store.check([f"{token}/go"]):
            return token
        if time.monotonic() > deadline:
            raise _not_met(problem, rank, world_size, timeout_s)
        time.sleep(_POLL_S)


def _not_met(problem: str, rank: int, world_size: int, timeout_s: float) -> CommTimeoutError:
    return CommTimeoutError(
        f"The group of {world_size} processes did not form within {timeout_s:g} s: on rank {rank}, "
        f"{problem}.",
        hint="Check that every rank runs, with its own rank, the same world_size and the same "
        "init_method.",
        rank=rank,
        world_size=world_size,
        timeout_s=timeout_s,
    )


def _env_int(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise InvalidArgumentError(
            f"The environment variable {name} is {os.environ[name]!r}, not an integer.",
            hint="Start with torchrun, which sets it.",
            code=ErrorCode.COMM_GROUP_INVALID,
        ) from None


__all__ = ["meet", "resolve_launch"]
