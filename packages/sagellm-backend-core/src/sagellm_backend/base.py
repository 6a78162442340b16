"""The provider: everything that an engine asks of one kind of hardware.

Public methods check their arguments and say what holds on every backend; the hooks behind them, in
:mod:`sagellm_backend.hooks`, are what a hardware package writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import sagellm_backend.whole  # noqa: F401 - raises where our files are mixed with others
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.base_comm import CommMethods
from sagellm_backend.base_kv import KVMethods
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.checks import check_int, check_shape, check_type, shown
from sagellm_backend.collectives import Communicator
from sagellm_backend.config import ProviderConfig
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError
from sagellm_backend.graphs import Graph
from sagellm_backend.hooks import HOST
from sagellm_backend.kv.tokens import TokenBlocks
from sagellm_backend.memory import MemoryLedgers, MemoryStats
from sagellm_backend.ops.dispatch import Explanation, KernelTable
from sagellm_backend.streams import Event, Stream

if TYPE_CHECKING:
    from typing_extensions import Self


class BackendProvider(KVMethods, CommMethods):
    """One backend: its memory, streams, KV cache, kernels and collectives.

    Made by ``get_provider``; every call makes a new one, with its own memory accounts and kernels.
    All methods are thread-safe unless they say otherwise. Errors are of the
    :class:`~sagellm_backend.errors.BackendError` family; a call that raises has changed nothing.

    Arrays are the framework's own ("native"). All have ``shape``, ``dtype``, ``reshape(shape)`` and
    ``array[start:stop, ...]``, a slice for each of the first dimensions, in steps of 1: a view or a
    copy of the part, which every kernel takes like any array. Caches, and what a kernel writes in
    place, are given whole.

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
            is_native=self._is_native,
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

    def register_host_memory(self, array: npt.NDArray[Any]) -> AbstractContextManager[None]:
        """Let the device copy from and to host memory that exists already, as if it were pinned.

        The registration lasts until the context is left, and the array must live as long. Needs
        ``Feature.HOST_REGISTER``.
        """
        self._require_open()
        self.require(Feature.HOST_REGISTER)
        return self._register_host_memory(check_type("array", array, np.ndarray))

    def memory_stats(self, location: str | None = None) -> MemoryStats:
        """Bytes held by this provider on a device (or ``"host"``), and the memory's own figures.

        The default device if ``location`` is ``None``.
        """
        account = self._account(self._place("device" if location is None else location))
        total, free = self._device_memory(account)
        return self._ledgers.of(account).stats(device_total=total, device_free=free)

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
        check_type("inputs", inputs, Mapping)
        if not callable(function):
            raise InvalidArgumentError(f"function must be callable, not {shown(function)}.")
        return self._capture(function, inputs)

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

    def _memory_limit(self, account: str) -> int:
        limit = None if account == HOST else self.config.memory_limit
        return limit or self._device_memory(account)[0]


def _host_array(array: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(array)
    except Exception as error:
        raise InvalidArgumentError(
            f"NumPy cannot make an array of this {type(array).__name__}: {error}",
            hint="Pass a NumPy array, of an ml_dtypes dtype for bf16 and fp8.",
        ) from error
