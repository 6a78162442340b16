"""Connections between the processes of one machine, for the toy communicator of the zoo."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from sagellm_backend.errors import CommError, CommTimeoutError

_RETRY_S = 0.02


class Mesh:
    """One connection from every rank to every other. One thread at a time.

    ``exchange`` raises :class:`CommTimeoutError` when a peer does not come within ``timeout_s``,
    and :class:`CommError` when it is gone.
    """

    def __init__(self, rank: int, peers: dict[int, Connection], timeout_s: float) -> None:
        self.rank = rank
        self.size = len(peers) + 1
        self._peers = peers
        self._timeout_s = timeout_s

    @classmethod
    def alone(cls) -> Mesh:
        """The mesh of one."""
        return cls(0, {}, 1.0)

    @classmethod
    def meet(cls, rank: int, size: int, place: str, timeout_s: float) -> Mesh:
        """Meet at a path: rank 0 listens there, learns where the others listen, and tells all."""
        deadline = time.monotonic() + timeout_s
        own = _listener()
        try:
            if rank == 0:
                addresses = _host(own.address, size, place, deadline)
            else:
                addresses = _join(own.address, rank, place, deadline)
            return cls.connect(rank, addresses, own, timeout_s)
        finally:
            own.close()

    @classmethod
    def connect(cls, rank: int, addresses: Sequence[Any], own: Listener, timeout_s: float) -> Mesh:
        """Connect to those of lower rank, and be connected to by the others."""
        peers: dict[int, Connection] = {}
        for other in range(rank):
            peers[other] = Client(addresses[other], "AF_UNIX")
            peers[other].send(rank)
        for _ in range(rank + 1, len(addresses)):
            made = own.accept()
            peers[made.recv()] = made
        return cls(rank, peers, timeout_s)

    def split(self, ranks: Sequence[int]) -> Mesh | None:
        """A mesh of some of the ranks; every rank calls it."""
        own = _listener()
        try:
            addresses = self.exchange(own.address)
            if self.rank not in ranks:
                return None
            chosen = [addresses[rank] for rank in ranks]
            return Mesh.connect(ranks.index(self.rank), chosen, own, self._timeout_s)
        finally:
            own.close()

    def exchange(self, item: Any) -> list[Any]:
        """Give everybody ``item`` and get everybody's, by rank.

        Pairs meet in one order everywhere, the lower rank speaks first: nobody waits in a circle.
        """
        found = {self.rank: item}
        for other in sorted(self._peers):
            if self.rank < other:
                self.send(other, item)
                found[other] = self.receive(other)
            else:
                found[other] = self.receive(other)
                self.send(other, item)
        return [found[rank] for rank in range(self.size)]

    def send(self, peer: int, item: Any) -> None:
        """Send to one peer."""
        try:
            self._peers[peer].send(item)
        except OSError as error:
            raise CommError(f"Rank {peer} is gone: {error}.") from error

    def receive(self, peer: int) -> Any:
        """Receive from one peer."""
        try:
            if not self._peers[peer].poll(self._timeout_s):
                raise CommTimeoutError(f"Rank {peer} did not come within {self._timeout_s} s.")
            return self._peers[peer].recv()
        except (EOFError, OSError) as error:
            if isinstance(error, CommTimeoutError):
                raise
            raise CommError(f"Rank {peer} is gone: {error}.") from error

    def close(self) -> None:
        """Leave."""
        for peer in self._peers.values():
            peer.close()


def _listener() -> Listener:
    name = f"sagellm-zoo-{secrets.token_hex(8)}"
    return Listener(str(Path(tempfile.gettempdir()) / name), "AF_UNIX", backlog=64)


def _host(address: Any, size: int, place: str, deadline: float) -> list[Any]:
    door = Listener(place, "AF_UNIX", backlog=64)
    door._listener._socket.settimeout(max(deadline - time.monotonic(), 0.01))  # type: ignore[attr-defined]
    addresses, waiting = {0: address}, []
    try:
        while len(addresses) < size:
            guest = door.accept()
            rank, theirs = guest.recv()
            addresses[rank] = theirs
            waiting.append(guest)
    except TimeoutError as error:
        raise CommTimeoutError(f"{len(addresses)} of {size} ranks came.") from error
    finally:
        door.close()
        Path(place).unlink(missing_ok=True)
    found = [addresses[rank] for rank in range(size)]
    for guest in waiting:
        guest.send(found)
        guest.close()
    return found


def _join(address: Any, rank: int, place: str, deadline: float) -> list[Any]:
    while time.monotonic() < deadline:
        try:
            with Client(place, "AF_UNIX") as host:
                host.send((rank, address))
                if not host.poll(max(deadline - time.monotonic(), 0.01)):
                    break
                found: list[Any] = host.recv()
                return found
        except (OSError, EOFError):
            time.sleep(_RETRY_S)
    raise CommTimeoutError(f"Rank 0 did not come to {place}.")
