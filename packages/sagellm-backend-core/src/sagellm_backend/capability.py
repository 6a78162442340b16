"""Capability: what a provider claims, as data that an engine can ask and the suite can prove."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError

if TYPE_CHECKING:
    from sagellm_backend.kv import KVLayout

CONTRACT_VERSION = (1, 0)
"""(major, minor) of the contract between providers and core. A provider declares the one that it
was built for; another major, or a newer minor than core's, is refused."""

PROTOCOL_VERSION = "0.1"
"""The published Protocol whose names and values this contract keeps."""


class KernelKind(str, Enum):
    """Kernel families of Protocol v0.1."""

    MATMUL = "matmul"
    ATTENTION = "attention"
    FUSION = "fusion"
    LAYERNORM = "layernorm"
    SOFTMAX = "softmax"

    __hash__ = str.__hash__


class Feature(str, Enum):
    """Optional features. What a provider does not list raises :class:`CapabilityError`."""

    STREAM = "stream"
    """Streams can be made, entered and synchronised."""
    STREAM_QUERY = "stream_query"
    """``Stream.query()`` answers without waiting."""
    STREAM_PRIORITY = "stream_priority"
    """``create_stream(priority)`` has an effect."""
    EVENT = "event"
    """Events can be recorded and waited for."""
    EVENT_TIMING = "event_timing"
    """``Event.elapsed_ms()`` measures."""
    ASYNC_COPY = "async_copy"
    """Copies given a stream may return before they are done."""
    GRAPH = "graph"
    """Graph capture and replay."""
    PINNED_MEMORY = "pinned_memory"
    """Host memory that the device can copy from asynchronously."""
    HOST_REGISTER = "host_register"
    """Host memory that exists already can be registered for such copies."""
    KV_POOL = "kv_pool"
    """KV pools on the device."""
    KV_HOST_POOL = "kv_host_pool"
    """KV pools in host memory, for swapping."""
    KV_PEER_COPY = "kv_peer_copy"
    """Copy plans between pools of two devices."""
    KV_EXPORT = "kv_export"
    """Pools can be opened in another process of the machine."""
    COLLECTIVE = "collective"
    """Communicators of more than one process."""
    DLPACK = "dlpack"
    """Native arrays speak DLPack."""

    __hash__ = str.__hash__


@dataclass(frozen=True)
class KVCapability:
    """What KV pools may look like here.

    ``block_sizes`` is the tuple of allowed tokens per block; empty means any from 1 up to
    ``max_block_size``. ``orders`` and ``packings`` use the words of :class:`KVLayout`, and
    ``alignment`` is the largest that a layout may ask for.
    """

    dtypes: tuple[DType, ...] = ()
    orders: tuple[str, ...] = ()
    packings: tuple[str, ...] = ()
    block_sizes: tuple[int, ...] = ()
    max_block_size: int = 1 << 16
    index_dtype: DType = DType.INT32
    alignment: int = 64

    def require(self, layout: KVLayout, provider: str) -> None:
        """Raise :class:`CapabilityError` unless pools of this layout are offered."""
        sizes = self.block_sizes or range(1, self.max_block_size + 1)
        claims: tuple[tuple[str, Any, Container[Any]], ...] = (
            ("dtype", layout.dtype, self.dtypes),
            ("order", layout.order, self.orders),
            ("packing", layout.packing, self.packings),
            ("block_size", layout.block_size, sizes),
            ("index_dtype", layout.index_dtype, (self.index_dtype,)),
            ("alignment", layout.alignment, range(1, self.alignment + 1)),
        )
        for name, value, offered in claims:
            if value not in offered:
                raise CapabilityError(
                    f"KV {name} {_word(value)}", provider, f"pools here have {_plain(offered)}."
                )


@dataclass(frozen=True)
class Limits:
    """Hard limits of the device or its kernels; ``None`` means that none is known."""

    max_batch: int | None = None
    max_sequence_length: int | None = None
    max_head_dim: int | None = None
    max_graph_batch: int | None = None


@dataclass(frozen=True)
class Requirements:
    """What an engine needs; see :meth:`CapabilityDescriptor.require`."""

    dtypes: tuple[DType, ...] = ()
    features: tuple[Feature, ...] = ()
    operations: tuple[str, ...] = ()
    operation_dtypes: Mapping[str, tuple[DType, ...]] = field(default_factory=dict)
    collectives: tuple[str, ...] = ()
    memory_bytes: int = 0
    batch: int = 0
    sequence_length: int = 0
    head_dim: int = 0


@dataclass(kw_only=True)
class CapabilityDescriptor:
    """What a provider claims. The first fields are Protocol's, name by name and in its order.

    Every call of ``provider.capability()`` gives a descriptor of its own: changing it changes
    nothing else. Memory is in bytes.

    ``flush_subnormals`` are the dtypes in which arithmetic may take numbers below the smallest
    normal one for zero, operands as well as results. What only moves data keeps them always.
    """

    device_name: str | None = None
    device_type: str = "unknown"
    compute_capability: str | None = None
    total_memory_bytes: int | None = None
    available_memory_bytes: int | None = None
    supported_dtypes: list[DType] = field(default_factory=list)
    supported_kernels: list[KernelKind] = field(default_factory=list)
    has_stream: bool = False
    has_event: bool = False
    has_collective: bool = False
    has_graph_exec: bool = False
    supported_collectives: list[str] = field(default_factory=list)
    has_kv_block_copy: bool = False
    has_kv_block_migrate: bool = False
    max_memory_mb: int | None = None
    max_batch_size: int | None = None
    max_sequence_length: int | None = None

    provider: str = "unknown"
    contract: tuple[int, int] = CONTRACT_VERSION
    array_framework: str = "unknown"
    features: frozenset[Feature] = frozenset()
    operations: dict[str, tuple[DType, ...]] = field(default_factory=dict)
    kv: KVCapability = field(default_factory=KVCapability)
    limits: Limits = field(default_factory=Limits)
    devices: tuple[DeviceInfo, ...] = ()
    peer_access: frozenset[tuple[int, int]] = frozenset()
    flush_subnormals: tuple[DType, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def supports_dtype(self, dtype: DType) -> bool:
        """Whether arrays of this dtype can be made and computed with."""
        return DType.parse(dtype) in self.supported_dtypes

    def supports_kernel(self, kernel: KernelKind) -> bool:
        """Whether a kernel of this family is offered."""
        return kernel in self.supported_kernels

    def supports_collective(self, op: str) -> bool:
        """Whether this collective is offered."""
        return op in self.supported_collectives

    def supports_feature(self, feature: Feature | str) -> bool:
        """Whether this optional feature is declared."""
        return feature in self.features

    def require_dtype(self, dtype: DType, operation: str = "operation") -> None:
        """Raise :class:`CapabilityError` unless ``dtype`` is supported (by that operation)."""
        dtype = DType.parse(dtype)
        known = self.operations.get(operation, tuple(self.supported_dtypes))
        if dtype not in known:
            self._refuse([f"{operation} has no {dtype.value}; it has {_words(known)}"])

    def require_collective(self, op: str) -> None:
        """Raise :class:`CapabilityError` unless the collective is offered."""
        self.require(Requirements(collectives=(op,)))

    def require_graph_exec(self) -> None:
        """Raise :class:`CapabilityError` unless graphs can be captured."""
        self.require(Requirements(features=(Feature.GRAPH,)))

    def shortfalls(self, needs: Requirements) -> list[str]:
        """Every requirement that is not met, one sentence each; empty when all are."""
        found = [
            f"no {DType.parse(dtype).value} arrays (has {_words(self.supported_dtypes)})"
            for dtype in needs.dtypes
            if not self.supports_dtype(dtype)
        ]
        found += [f"no feature {_word(f)}" for f in needs.features if f not in self.features]
        found += [f"no operation {op}" for op in needs.operations if op not in self.operations]
        for op, dtypes in needs.operation_dtypes.items():
            offered = self.operations.get(op, ())
            missing = [d for d in dtypes if DType.parse(d) not in offered]
            found += [
                f"no {DType.parse(d).value} for {op} (has {_words(offered)})" for d in missing
            ]
        found += [
            f"no collective {op} (has {_words(self.supported_collectives)})"
            for op in needs.collectives
            if not self.supports_collective(op)
        ]
        return found + self._limit_shortfalls(needs)

    def _limit_shortfalls(self, needs: Requirements) -> list[str]:
        pairs = (
            ("memory_bytes", needs.memory_bytes, self.available_memory_bytes),
            ("batch", needs.batch, self.limits.max_batch),
            ("sequence_length", needs.sequence_length, self.limits.max_sequence_length),
            ("head_dim", needs.head_dim, self.limits.max_head_dim),
        )
        return [
            f"{name} of {wanted:,} wanted, {limit:,} is the limit"
            for name, wanted, limit in pairs
            if limit is not None and wanted > limit
        ]

    def require(self, needs: Requirements) -> None:
        """Raise one :class:`CapabilityError` that lists every shortfall, or return."""
        found = self.shortfalls(needs)
        if found:
            self._refuse(found)

    def _refuse(self, shortfalls: list[str]) -> None:
        raise CapabilityError(
            "requirements",
            self.provider,
            "; ".join(shortfalls) + ".",
            hint="`sagellm-backend list` shows what the other backends offer.",
        )

    def to_dict(self) -> dict[str, Any]:
        """The descriptor as plain JSON data."""
        data: dict[str, Any] = _plain(asdict(self))
        return data


def _word(value: Any) -> str:
    return str(value.value) if isinstance(value, Enum) else str(value)


def _words(values: Any) -> str:
    return ", ".join(_word(value) for value in values) or "none"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {_word(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
