"""The provider: everything that an engine asks of one kind of hardware.

Public methods check their arguments and say what holds on every backend; the hooks behind them, in
:mod:`sagellm_backend.hooks`, are what a hardware package writes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.checks import check_choice, check_int, check_shape, check_type
from sagellm_backend.collectives import Communicator
from sagellm_backend.config import ProviderConfig
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, OutOfMemoryError
from sagellm_backend.graphs import Graph
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVCopyPlan, KVLayout, KVPool
from sagellm_backend.kv.tokens import TokenBlocks
from sagellm_backend.memory import MemoryLedgers, MemoryStats
from sagellm_backend.ops.dispatch import Explanation, KernelTable
from sagellm_backend.protocol import ProtocolMethods
from sagellm_backend.streams import Event, Stream

if TYPE_CHECKING:
    from typing_extensions import Self


class BackendProvider(ProtocolMethods):
    """One backend: its memory, streams, KV cache, kernels and collectives.

    Made by ``get_provider``; every call makes a new one, with its own memory accounts and kernels.
    All methods are thread-safe unless they say otherwise. Errors are of the
    :class:`~sagellm_backend.errors.BackendError` family; a call that raises has changed nothing.

    ``location`` arguments are ``"device"`` (this provider's default device), ``"host"`` (memory the
    device can copy from fast) or a device such as ``"cuda:1"``.
    """

    def __init__(self, config: Mapping[str, Any] | ProviderConfig | None = None) -> None:
        self.config = ProviderConfig.parse(config)
        count = self._device_count()
        if self.config.device >= count:
            raise InvalidArgumentError(
                f"Device {self.config.device} does not exist: backend {self.name!r} has {count}.",
                requested=self.config.device,
                devices=count,
            )
        self.device = self._device_name(self.config.device)
        self.closed = False
        self._ledgers = MemoryLedgers(self._memory_limit)
        self._default_communicator: Communicator | None = None
        self.kernels = KernelTable(
            self.name,
            to_numpy=self.to_numpy,
            from_numpy=self.from_numpy,
            write_back=self._write_back,
            policy=self.config.fallback,
            reference_only=self.config.reference_only,
        )
        self._tokens = TokenBlocks(
            self.config.kv_layout,
            self.config.kv_blocks,
            self._token_pool,
            self.kv_copy_plan,
            self._ledgers.of,
        )
        self._register_kernels(self.kernels)

    def capability(self) -> CapabilityDescriptor:
        """What this provider claims, in a descriptor that the caller owns."""
        return self._capability()

    def require(self, feature: Feature) -> None:
        """Raise :class:`CapabilityError` unless ``feature``, or the one of that name, is declared."""
        word = Feature(check_choice("feature", feature, [item.value for item in Feature])).value
        declared = self._features()
        if word not in declared:
            listed = ", ".join(sorted(item.value for item in declared))
            raise CapabilityError(
                word, self.name, "it is not declared.", hint=f"Declared are {listed}."
            )

    def empty(self, shape: Any, dtype: Any, location: str = "device") -> Any:
        """A native array with unspecified contents; its memory lives as long as the array.

        Raises :class:`OutOfMemoryError` with the bytes requested and free.
        """
        self._require_open()
        parsed = self._array_dtype(dtype)
        return self._empty(check_shape(shape, parsed.bits), parsed, self._place(location))

    def from_numpy(self, array: npt.ArrayLike, location: str = "device") -> Any:
        """A native array with the contents of ``array``, which is copied.

        What is no NumPy array is made one by ``np.asarray``.
        """
        self._require_open()
        host = _host_array(array)
        shape = check_shape(host.shape, self._array_dtype(host.dtype).bits)
        place = self._place(location)
        try:
            contiguous = np.ascontiguousarray(host)
        except MemoryError as error:
            raise OutOfMemoryError(
                f"The host has no {host.nbytes:,} bytes to make {shape} contiguous.",
                requested=host.nbytes,
            ) from error
        return self._from_numpy(contiguous.reshape(shape), place)

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """A NumPy copy of a native array, when the work that makes it is done.

        bf16 and fp8 come as ml_dtypes.
        """
        self._require_native("array", array)
        return self._to_numpy(array)

    def memory_stats(self, device: str | None = None) -> MemoryStats:
        """Bytes held by this provider on a device, and the device's own figures."""
        place = self._place("device" if device is None else device)
        total, free = self._device_memory(place.device)
        return self._ledgers.of(place.device).stats(device_total=total, device_free=free)

    def clear_cache(self) -> None:
        """Give back memory that is reserved but serves no live array or block."""
        self._tokens.release_idle()
        self._clear_cache()

    def create_stream(self, priority: int = 0) -> Stream:
        """A new stream on the default device."""
        self._require_open()
        self.require(Feature.STREAM)
        return self._create_stream(check_int("priority", priority, low=-100, high=100))

    def create_event(self) -> Event:
        """A new event, not yet recorded."""
        self._require_open()
        self.require(Feature.EVENT)
        return self._create_event()

    def synchronize(self) -> None:
        """Wait for all work of this provider. A failure of that work is raised here, once."""
        self._synchronize()

    def capture(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Graph:
        """Record ``function(**inputs)`` as a graph; needs ``Feature.GRAPH``."""
        self._require_open()
        self.require(Feature.GRAPH)
        return self._capture(function, inputs)

    def kv_pool(self, layout: KVLayout, num_blocks: int, location: str = "device") -> KVPool:
        """A pool of ``num_blocks`` blocks, with its storage allocated.

        The caller closes it; a pool that is garbage-collected gives its memory back too. Raises
        :class:`CapabilityError` for a layout that this device has no kernels for and
        :class:`OutOfMemoryError` with the bytes requested and free.
        """
        self._require_open()
        check_type("layout", layout, KVLayout)
        self._kv_claims.require(layout, self.name)
        blocks = check_int("num_blocks", num_blocks, high=(1 << 31) - 1)
        place = self._place(location)
        self.require(Feature.KV_HOST_POOL if place.location == "host" else Feature.KV_POOL)
        ledger, nbytes = self._ledgers.of(place.device), layout.nbytes(blocks)
        ledger.charge(nbytes, "kv")
        try:
            pool = self._kv_pool(layout, blocks, place)
        except BaseException:
            ledger.release(nbytes, "kv")
            raise
        pool.on_close = weakref.finalize(pool, ledger.release, nbytes, "kv")
        return pool

    def kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        """A plan for copies from one pool to another, both of this provider."""
        for name, pool in (("source", source), ("target", target)):
            if check_type(name, pool, KVPool).owner is not self:
                raise InvalidArgumentError(f"The {name} pool belongs to another provider.")
        if source.device != target.device:
            self.require(Feature.KV_PEER_COPY)
        return self._kv_copy_plan(source, target)

    def register_kernel(self, name: str, impl: Callable[..., Any]) -> None:
        """Offer a kernel of the caller's own: it takes precedence under its name."""
        self.kernels.register_custom(name, impl)

    def get_kernel(self, name: str, **static: Any) -> Callable[..., Any]:
        """The best kernel for an operation, to be resolved once and called often.

        ``static`` is what is known beforehand (``dtype="bf16"``, ``head_dim=128``); it chooses, and
        is given again in the call. Raises :class:`OperatorNotFoundError`, or
        :class:`CapabilityError` with the reasons of every kernel that cannot do it.
        """
        return self.kernels.resolve(check_type("name", name, str), **static)

    def supports(self, name: str, **static: Any) -> list[str]:
        """Why no kernel can do this; empty when one can."""
        return self.kernels.supports(check_type("name", name, str), **static)

    def explain(self, name: str, **static: Any) -> Explanation:
        """Which kernel would run, which would not, and why."""
        return self.kernels.explain(check_type("name", name, str), **static)

    def attention_metadata(
        self, query_lens: Any, kv_lens: Any = None, block_table: Any = None, block_size: Any = None
    ) -> AttentionMetadata:
        """What the attention of one step needs, checked once and ready on the device.

        See :meth:`AttentionMetadata.build` for the arguments.
        """
        metadata = AttentionMetadata.build(query_lens, kv_lens, block_table, block_size)
        self._prepare_attention(metadata)
        return metadata

    def communicator(
        self,
        rank: int | None = None,
        world_size: int | None = None,
        init_method: str | None = None,
        timeout_s: float = 300.0,
    ) -> Communicator:
        """Join a group of processes.

        Without arguments the group is the one that the launcher (torchrun) describes in the
        environment. ``init_method`` is ``tcp://host:port`` or ``file:///path``. The first open one
        is the default of :meth:`all_reduce` and :meth:`all_gather`. Raises :class:`CommError`, and
        :class:`CommTimeoutError` if the others do not come.
        """
        self._require_open()
        self.require(Feature.COLLECTIVE)
        joined = self._communicator(rank, world_size, init_method, timeout_s)
        if self._default_communicator is None or self._default_communicator.closed:
            self._default_communicator = joined
        return joined

    def close(self) -> None:
        """Wait for work, leave groups, drop idle memory. Closing twice is allowed.

        A failure of that work is raised here; the provider is closed all the same.
        """
        if self.closed:
            return
        self.closed = True
        try:
            self._synchronize()
        finally:
            if self._default_communicator is not None:
                self._default_communicator.close()
            self.clear_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _array_dtype(self, dtype: Any) -> DType:
        parsed = DType.parse(dtype)
        if parsed not in self._array_dtypes():
            listed = ", ".join(item.value for item in self._array_dtypes())
            raise CapabilityError(
                f"arrays of {parsed.value}", self.name, "no such type.", hint=f"There are {listed}."
            )
        return parsed

    def _token_pool(self, layout: KVLayout, num_blocks: int, device: str) -> KVPool:
        self._kv_claims.require(layout, self.name)
        return self._kv_pool(layout, num_blocks, Place("device", device))

    def _memory_limit(self, device: str) -> int:
        return self.config.memory_limit or self._device_memory(device)[0]


def _host_array(array: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(array)
    except Exception as error:
        raise InvalidArgumentError(
            f"NumPy cannot make an array of this {type(array).__name__}: {error}",
            hint="Pass a NumPy array, of an ml_dtypes dtype for bf16 and fp8.",
        ) from error
