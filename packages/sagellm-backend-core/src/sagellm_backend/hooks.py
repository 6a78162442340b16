"""The hooks of a provider: what a hardware package writes.

Every hook is called by :class:`~sagellm_backend.base.BackendProvider` after the arguments have been
checked, so a hook may trust them. A hook that fails raises an error of our family and leaves
nothing half done. Hooks for features that the provider does not declare are never called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

import numpy.typing as npt

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.capability import CONTRACT_VERSION, CapabilityDescriptor, Feature
from sagellm_backend.collectives import Communicator
from sagellm_backend.config import ProviderConfig
from sagellm_backend.devices import format_device_str
from sagellm_backend.dtypes import DType
from sagellm_backend.graphs import Graph
from sagellm_backend.kv import KVCopyPlan, KVLayout, KVPool
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.streams import Event, Stream

HOST = "host"
"""The location, and the account, of host memory."""


class Place(NamedTuple):
    """Where memory lies: ``location`` is ``device`` or ``host``, ``device`` the device it serves."""

    location: str
    device: str


class ProviderHooks(ABC):
    """What differs between kinds of hardware."""

    name: ClassVar[str]
    """What we call the backend: ``cpu``, ``cuda``, ``ascend``, ``kunlun``."""
    device_type: ClassVar[str]
    """What the array framework calls its devices: ``cpu``, ``cuda``, ``npu``, ``xpu``."""
    array_framework: ClassVar[str]
    """``torch``, ``paddle`` or ``numpy``."""
    contract: ClassVar[tuple[int, int]] = CONTRACT_VERSION
    """The contract that the package was built for."""

    config: ProviderConfig
    device: str

    @abstractmethod
    def _device_count(self) -> int:
        """How many devices the process sees."""

    def _device_name(self, index: int) -> str:
        """The string of device ``index``."""
        return format_device_str(self.device_type, index)

    @abstractmethod
    def _capability(self) -> CapabilityDescriptor:
        """The descriptor; a new object each time, cheap."""

    @abstractmethod
    def _features(self) -> frozenset[Feature]:
        """The optional features that are declared."""

    @abstractmethod
    def _array_dtypes(self) -> tuple[DType, ...]:
        """The dtypes that arrays can have, index types included."""

    def _account(self, place: Place) -> str:
        """Whom memory at ``place`` is charged to: its device, or :data:`HOST` beside all of them.

        A device that computes in host memory charges both to itself.
        """
        return HOST if place.location == HOST else place.device

    @abstractmethod
    def _device_memory(self, account: str) -> tuple[int, int]:
        """(total, free) bytes of a device, or of :data:`HOST`, every process counted."""

    @abstractmethod
    def _is_native(self, array: Any) -> bool:
        """Whether ``array`` is an array of this provider's framework and device type."""

    @abstractmethod
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> Any:
        """An uninitialised array, charged as ``other`` for as long as its memory lives."""

    @abstractmethod
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> Any:
        """A copy of a contiguous host array, charged likewise."""

    @abstractmethod
    def _to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """A host copy, once pending work on ``array`` is done."""

    @abstractmethod
    def _write_back(self, array: Any, values: npt.NDArray[Any]) -> None:
        """Overwrite the contents of a native array by host values of equal shape and dtype."""

    def _clear_cache(self) -> None:
        """Give the framework's own cached memory back."""

    def _register_host_memory(self, array: npt.NDArray[Any]) -> AbstractContextManager[None]:
        """A registration, where ``Feature.HOST_REGISTER`` is declared."""
        raise NotImplementedError

    @abstractmethod
    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        """A pool with storage; its bytes are charged by the caller."""

    @abstractmethod
    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        """A plan between two pools of this provider."""

    def _kv_export(self, pool: KVPool) -> bytes:
        """A handle of a pool of this provider, where ``Feature.KV_EXPORT`` is declared."""
        raise NotImplementedError

    def _kv_open(self, handle: bytes) -> KVPool:
        """The pool behind a handle, where ``Feature.KV_EXPORT`` is declared."""
        raise NotImplementedError

    @abstractmethod
    def _register_kernels(self, table: KernelTable) -> None:
        """Put the kernels of this hardware into its table; called once, at construction."""

    def _prepare_attention(self, metadata: AttentionMetadata) -> None:
        """Put device copies of what the kernels read into ``metadata.native``."""

    def _create_stream(self, priority: int) -> Stream:
        """A stream, where ``Feature.STREAM`` is declared."""
        raise NotImplementedError

    def _create_event(self) -> Event:
        """An event, where ``Feature.EVENT`` is declared."""
        raise NotImplementedError

    def _synchronize(self) -> None:
        """Wait for all work; nothing to do where calls return when their work is done."""

    def _capture(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Graph:
        """A captured graph, where ``Feature.GRAPH`` is declared."""
        raise NotImplementedError

    def _communicator(
        self, rank: int | None, world_size: int | None, init_method: str | None, timeout_s: float
    ) -> Communicator:
        """A group, where ``Feature.COLLECTIVE`` is declared."""
        raise NotImplementedError
