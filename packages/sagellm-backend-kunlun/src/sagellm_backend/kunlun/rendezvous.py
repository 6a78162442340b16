"""How the processes of a group find each other, before Paddle connects them.

Rank 0 listens for one group, and answers all ranks at once when the last has come: with the port of
the store that Paddle needs and a number for the group that no earlier one had. Then it is gone, so
an address can be used again and again. A file holds the address where rank 0 listens now; what an
earlier group left in it answers no more.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from sagellm_backend.errors import CommTimeoutError, ErrorCode, InvalidArgumentError

_POLL_S = 0.01
_LINE = 1 << 12
_METHODS = "Pass init_method as tcp://host:port or file:///path, or start with a launcher."
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    ("PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM", "PADDLE_MASTER", None),
)


class Meeting(NamedTuple):
    """Where the store of a group is, and the group's number."""

    host: str
    port: int
    group: int


def resolve_launch(
    rank: int | None, world_size: int | None, init_method: str | None
) -> tuple[int, int, str]:
    """Fill what was not given from the environment of torchrun or of Paddle's launcher.

    Raises :class:`InvalidArgumentError` that names what is missing.
    """
    launcher = next((names for names in _LAUNCHERS if names[0] in os.environ), _LAUNCHERS[0])
    rank_name, world_name, host_name, port_name = launcher
    from_env = init_method in {None, "env://"}
    wanted = [
        *([rank_name] if rank is None else []),
        *([world_name] if world_size is None else []),
        *([name for name in (host_name, port_name) if name] if from_env else []),
    ]
    missing = [name for name in wanted if not os.environ.get(name)]
    if missing:
        raise InvalidArgumentError(
            f"The group is not known: {', '.join(missing)} not given and not in the environment.",
            hint="Start with a launcher, or pass rank, world_size and init_method "
            "(tcp://host:port or file:///path).",
        )
    rank = _env_int(rank_name) if rank is None else rank
    world_size = _env_int(world_name) if world_size is None else world_size
    if not from_env:
        assert init_method is not None
        return rank, world_size, init_method
    port = f":{_env_int(port_name)}" if port_name else ""
    return rank, world_size, f"tcp://{os.environ[host_name]}{port}"


def meet(address: str, rank: int, world_size: int, timeout_s: float) -> Meeting:
    """Wait until every rank is at ``address``.

    Raises :class:`CommTimeoutError` that names who is missing and :class:`InvalidArgumentError` for
    an address that cannot be one.
    """
    path, host, port = _parse(address)
    deadline = time.monotonic() + timeout_s
    if rank:
        return _sign_in(path, host, port, rank, world_size, deadline, timeout_s)
    with _listen(host if path is None else "", port, deadline) as server:
        if path is not None:
            host = _own_name()
            written = path.with_name(f"{path.name}.{os.getpid()}")
            written.write_text(f"{host}:{server.getsockname()[1]}", encoding="utf-8")
            written.replace(path)
        return _gather(server, host, world_size, deadline, timeout_s)


def await_store(meeting: Meeting, timeout_s: float) -> None:
    """Wait until rank 0 listens there: Paddle would ask once, and then sleep for three seconds."""
    deadline = time.monotonic() + timeout_s
    while not _answers(meeting, timeout_s) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _answers(meeting: Meeting, timeout_s: float) -> bool:
    try:
        socket.create_connection((meeting.host, meeting.port), timeout_s).close()
    except OSError:
        return False
    return True


def _parse(address: str) -> tuple[Path | None, str, int]:
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
        return path, "", 0
    if parts.scheme != "tcp" or not host or port is None:
        raise InvalidArgumentError(f"{address!r} is no address to meet at.", hint=_METHODS)
    return None, host, port


def _listen(host: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            return socket.create_server((host, port))
        except OSError:  # noqa: PERF203 - it is tried until it works
            # The port may still be that of a group that has just closed.
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def _gather(
    server: socket.socket, host: str, world_size: int, deadline: float, timeout_s: float
) -> Meeting:
    came: dict[int, socket.socket] = {}
    try:
        while len(came) < world_size - 1:
            _accept(server, came, world_size, deadline)
            if time.monotonic() > deadline:
                missing = [str(rank) for rank in range(1, world_size) if rank not in came]
                problem = f"ranks {', '.join(missing)} of {world_size} did not come"
                raise _not_met(problem, 0, world_size, timeout_s)
        meeting = Meeting(host, _free_port(), secrets.randbelow(1 << 30))
        for connection in came.values():
            connection.sendall(json.dumps(meeting[1:]).encode() + b"\n")
        return meeting
    finally:
        for connection in came.values():
            connection.close()


def _accept(
    server: socket.socket, came: dict[int, socket.socket], world_size: int, deadline: float
) -> None:
    """Take one rank in, as far as one comes that belongs to the group."""
    server.settimeout(max(min(deadline - time.monotonic(), 0.2), _POLL_S))
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return
    connection.settimeout(1.0)
    try:
        rank, world = json.loads(_line(connection))
        if world != world_size:
            problem = f"rank 0 waits for a group of {world_size} processes"
        elif rank in came:
            problem = f"a process of rank {rank} had joined already"
        else:
            came[rank] = connection
            return
        connection.sendall(json.dumps(problem).encode() + b"\n")
    except (OSError, ValueError, TypeError):
        pass  # no rank of ours
    connection.close()


def _sign_in(
    path: Path | None,
    host: str,
    port: int,
    rank: int,
    world_size: int,
    deadline: float,
    timeout_s: float,
) -> Meeting:
    problem = "rank 0 did not come"
    while (left := deadline - time.monotonic()) > 0:
        try:
            if path is not None:
                host, _, text = path.read_text(encoding="utf-8").rpartition(":")
                port = int(text)
            with socket.create_connection((host, port), left) as connection:
                connection.sendall(json.dumps([rank, world_size]).encode() + b"\n")
                answer: Any = json.loads(_line(connection))
            if isinstance(answer, list):
                return Meeting(host, *answer)
            problem = str(answer)
        except TimeoutError:
            problem = "not every other rank came"
        except (OSError, ValueError):
            pass  # nobody listens yet, or an earlier group has just gone
        time.sleep(_POLL_S)
    raise _not_met(problem, rank, world_size, timeout_s)


def _line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.readline(_LINE)


def _own_name() -> str:
    """The name by which other processes reach this machine."""
    try:
        name = socket.gethostname()
        socket.getaddrinfo(name, 0)
    except OSError:
        return "127.0.0.1"
    return name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


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
            hint="Start with a launcher, which sets it.",
            code=ErrorCode.COMM_GROUP_INVALID,
        ) from None
