"""Settings of a provider, checked once when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sagellm_backend.checks import check_choice, check_int, check_type
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kv.layout import KVLayout

Fallback = Literal["strict", "warn", "allow"]
FALLBACKS: tuple[Fallback, ...] = ("strict", "warn", "allow")


@dataclass(frozen=True)
class ProviderConfig:
    """What ``get_provider(name, config)`` accepts, the same for every backend.

    - ``device``: index of the device whose memory and streams are the default;
    - ``memory_limit``: bytes that the provider may hold per device; the device's memory if ``None``;
    - ``kv_layout``, ``kv_blocks``: the pool behind Protocol's ``kv_block_alloc``. Its dtype is the
      one that each call names;
    - ``fallback``: what to do when no kernel supports an operation: ``strict`` refuses, ``warn``
      computes by the reference on the host and logs once, ``allow`` does so silently. One word, or
      a mapping by operation with ``"*"`` for the rest;
    - ``reference_only``: compute everything by the reference, for the first day of new hardware.
    """

    device: int = 0
    memory_limit: int | None = None
    kv_layout: KVLayout = field(
        default=KVLayout(
            num_layers=1, num_kv_heads=8, head_dim=128, block_size=16, dtype=DType.FP16
        )
    )
    kv_blocks: int = 1024
    fallback: Fallback | Mapping[str, Fallback] = "strict"
    reference_only: bool = False

    def __post_init__(self) -> None:
        check_int("config 'device'", self.device, low=0, high=1 << 16)
        if self.memory_limit is not None:
            check_int("config 'memory_limit'", self.memory_limit)
        check_type("config 'kv_layout'", self.kv_layout, KVLayout)
        check_int("config 'kv_blocks'", self.kv_blocks, high=(1 << 31) - 1)
        check_type("config 'reference_only'", self.reference_only, bool)
        policies = self.fallback.values() if isinstance(self.fallback, Mapping) else [self.fallback]
        for policy in policies:
            check_choice("config 'fallback'", policy, FALLBACKS)

    @classmethod
    def parse(cls, config: Any) -> ProviderConfig:
        """``config`` as settings: ``None``, a mapping, or settings. Unknown keys are refused."""
        if isinstance(config, cls):
            return config
        given = check_type("config", {} if config is None else config, Mapping)
        known = [item.name for item in fields(cls)]
        unknown = [repr(key) for key in given if key not in known]
        if unknown:
            raise InvalidArgumentError(
                f"Unknown config {', '.join(unknown)}.", hint=f"Known are {', '.join(known)}."
            )
        return cls(**given)
