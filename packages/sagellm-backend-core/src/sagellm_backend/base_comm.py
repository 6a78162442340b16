"""The collective side of a provider: groups, and the default group's collectives of v0.1."""

from __future__ import annotations

from typing import Any

from sagellm_backend.base_checks import ProviderChecks
from sagellm_backend.capability import Feature
from sagellm_backend.collectives import Communicator, ReduceOp


class CommMethods(ProviderChecks):
    """Work with other processes. One thread at a time."""

    _default_communicator: Communicator | None

    def communicator(
        self,
        rank: int | None = None,
        world_size: int | None = None,
        init_method: str | None = None,
        timeout_s: float = 300.0,
    ) -> Communicator:
        """Join a group of processes.

        Without arguments the group is the one that the launcher (torchrun) describes in the
        environment. ``init_method`` is ``tcp://host:port`` or ``file:///path``; one address serves
        any number of groups, one after the other, and the file is the caller's to delete when the
        last has closed. The first open group is the default of :meth:`all_reduce` and
        :meth:`all_gather`. Raises :class:`CommError`, and :class:`CommTimeoutError` if the others
        do not come.
        """
        self._require_open()
        self.require(Feature.COLLECTIVE)
        joined = self._communicator(rank, world_size, init_method, timeout_s)
        if self._default_communicator is None or self._default_communicator.closed:
            self._default_communicator = joined
        return joined

    def all_reduce(self, tensor: Any, op: str = "sum") -> None:
        """Reduce in place over the default communicator; alone, the identity."""
        self._require_native("tensor", tensor)
        reduction = ReduceOp.parse(op)
        if self._default_communicator is not None:
            self._default_communicator.all_reduce(tensor, reduction)

    def all_gather(self, tensor: Any) -> Any:
        """Every rank's array stacked by rank; alone, the array as (1, ...)."""
        self._require_native("tensor", tensor)
        if self._default_communicator is not None:
            return self._default_communicator.all_gather(tensor)
        return tensor.reshape((1, *tensor.shape))
