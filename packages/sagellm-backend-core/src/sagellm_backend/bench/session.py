"""What the rows of one run share: provider, limits, peers, random numbers, and how long to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from sagellm_backend.base import BackendProvider
from sagellm_backend.bench.busy import Busy
from sagellm_backend.bench.limits import Limits
from sagellm_backend.bench.peers import Peers
from sagellm_backend.bench.row import Absent, Side
from sagellm_backend.bench.timing import repeated
from sagellm_backend.dtypes import DType

Array = np.ndarray[Any, Any]

_ALTERNATIVES = {"torch": "sagellm_backend.torch_support.bench"}


@dataclass(eq=False)
class Session:
    """One run on one provider. ``quick`` asks for small work: to try things out, not to measure."""

    provider: BackendProvider
    limits: Limits
    peers: Peers
    busy: Busy
    quick: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(20_26)

    def ours(self, call: Callable[[], object]) -> Side:
        """Calls of this provider as a side."""
        return Side("ours", repeated(call, self.provider.synchronize))

    def beside(self, name: str, alternative: str, *args: Any, **kwargs: Any) -> Side | Absent:
        """What the arrays' framework itself offers: ``alternative`` of its module, made of these."""
        found = self._alternatives()
        if found is None:
            framework = self.provider.capability().array_framework
            return Absent(name, f"the arrays here are {framework}'s")
        call = getattr(found, alternative)(*args, **kwargs)
        return Side(name, repeated(call, self.provider.synchronize))

    def peer(
        self, peer: str, name: str, script: str, config: Mapping[str, Any], key: str = ""
    ) -> Side | Absent:
        """A side in another process, see :meth:`Peers.side`."""
        return self.peers.side(peer, name, script, config, key)

    def normal(self, *shape: int, dtype: DType = DType.FP32) -> Array:
        """Standard normal numbers on the host."""
        return self.rng.standard_normal(shape, np.float32).astype(dtype.numpy)

    def _alternatives(self) -> Any:
        home = _ALTERNATIVES.get(self.provider.capability().array_framework)
        return None if home is None else import_module(home)
