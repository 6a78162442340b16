"""What the published engine, isagellm-core 0.5, asks of a provider besides the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional

from sagellm_backend.attention.availability import BACKENDS, ENGINE, known
from sagellm_backend.base import BackendProvider
from sagellm_backend.config import ProviderConfig
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.torch_support.errors import check

if TYPE_CHECKING:
    from sagellm_backend.torch_support.paged_attention import PagedAttentionBackend

PRIORITY = 100
"""The priority of our kernels in an engine's registry."""

_BY_NAME: dict[str, Callable[..., Any]] = {"silu": functional.silu, "relu": functional.relu}


@dataclass(frozen=True)
class EngineAttention:
    """The attention backend of an engine that computes attention, and keeps its KV cache, itself."""

    name: str = ENGINE
    supports_paged_attention: bool = False


class EngineMethods(BackendProvider):
    """The methods of Protocol v0.1 and of the published engine that our contract does not have.

    Adapters over this provider's operations, which its subclasses share. All are thread-safe.
    """

    def __init__(self, config: Mapping[str, Any] | ProviderConfig | None = None) -> None:
        super().__init__(config)
        for name, kernel in _BY_NAME.items():
            self.register_kernel(name, kernel)

    def get_torch_device(self) -> torch.device:
        """The device that models and inputs go to."""
        return torch.device(self.device)

    def to_device(self, tensor: Any) -> Tensor:
        """The tensor on this provider's device: itself if it lies there, a copy otherwise."""
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(
                f"to_device takes a tensor, not {type(tensor).__name__}.",
                hint="Make one of host values with from_numpy(...).",
            )
        with check("to_device", self.device):
            return tensor.to(self.get_torch_device())

    def get_supported_attention_backends(self) -> list[str]:
        """The names that :meth:`get_attention_backend` takes, the default first."""
        return list(BACKENDS)

    def get_attention_backend(
        self, name: str | None = None
    ) -> EngineAttention | PagedAttentionBackend:
        """The attention backend of this name; without one, the engine's own attention.

        ``paged`` is to be asked for by name, and not by isagellm-core 0.5, whose own paged path
        fails (docs/engines.md). Raises :class:`InvalidArgumentError` for any other name.
        """
        if name is None:
            return EngineAttention()
        return EngineAttention() if known(name) == ENGINE else self._paged_attention()

    def register_kernels(self, registry: Any) -> None:
        """Put the kernels that the engine knows into its operator registry, for this device.

        They are called by position, as the engine does: ``linear(x, weight, bias)``,
        ``embedding(ids, table)``, ``rmsnorm(x, weight, eps)``, ``layernorm(x, weight, bias, eps)``,
        ``silu(x)``, ``gelu(x)``, ``relu(x)``; ``attention`` is that of the backend ``paged``. An
        exception of a kernel would hang the engine, so whatever is missing raises here.

        Raises :class:`InvalidArgumentError` for an object that is no such registry.
        """
        operator, constraint = _registry_types(registry)
        for name, kernel in self._engine_kernels().items():
            registry.register_kernel(
                operator(name),
                kernel,
                constraint(device_type=self.device_type),
                priority=PRIORITY,
                description=f"{name} of sagellm-backend, provider {self.name}",
            )

    def _engine_kernels(self) -> dict[str, Callable[..., Any]]:
        names = ("linear", "embedding", "layernorm", "silu", "gelu", "relu")
        return {
            **{name: self.get_kernel(name) for name in names},
            "rmsnorm": _promoting(self.get_kernel("rms_norm")),
            "attention": self._paged_attention().attention,
        }

    def _paged_attention(self) -> PagedAttentionBackend:
        # It asks the registry for providers, which import this module.
        from sagellm_backend.torch_support.paged_attention import PagedAttentionBackend

        return PagedAttentionBackend(self)


def _promoting(rms_norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``rms_norm``, taking a weight of another dtype too, with what transformers makes of it."""

    def call(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dtype is weight.dtype:
            return rms_norm(x, weight, eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return weight * wide.to(x.dtype)

    return call


def _registry_types(registry: Any) -> tuple[Callable[[str], Any], Callable[..., Any]]:
    """The registry's own types of an operator and of a constraint: no package of its is imported."""
    try:
        hints = get_type_hints(registry.register_kernel)
        return hints["operator_type"], hints["constraint"]
    except (AttributeError, KeyError, NameError, TypeError) as error:
        raise InvalidArgumentError(
            f"{type(registry).__name__} is no operator registry: its register_kernel must be "
            f"annotated with the types of operator_type and constraint ({error}).",
            hint="Pass the registry of isagellm-core, or ask get_kernel(name) for each kernel.",
        ) from error
