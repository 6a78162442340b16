"""The reference provider: the contract in NumPy, as plain as it can be said.

Two devices are simulated as a real accelerator behaves: kernels are queued on streams and return at
once, streams run beside the host, device memory is limited and out of the host's reach, and memory
that was not written yet holds NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CapabilityDescriptor, Feature, KVCapability
from sagellm_backend.config import ProviderConfig
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.kv import KVCopyPlan, KVLayout, KVPool
from sagellm_backend.kv.layout import ORDERS, PACKINGS
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.reference import kernels
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.kv import ReferenceKVCopyPlan, ReferenceKVPool
from sagellm_backend.reference.memory import DEVICE_BYTES, MAX_ALIGNMENT, charged_storage
from sagellm_backend.reference.spec import DEVICE_COUNT
from sagellm_backend.reference.streams import ReferenceEvent, ReferenceStream, Workers, settle
from sagellm_backend.streams import entered_stream

_NAME = "NumPy reference device"
_KV_DTYPES = (*FLOATING, DType.FP8, DType.INT8)
_ARRAY_DTYPES = (*_KV_DTYPES, DType.INT32, DType.INT64)
_FEATURES = frozenset(
    {
        Feature.STREAM,
        Feature.STREAM_QUERY,
        Feature.EVENT,
        Feature.EVENT_TIMING,
        Feature.ASYNC_COPY,
        Feature.PINNED_MEMORY,
        Feature.KV_POOL,
        Feature.KV_HOST_POOL,
        Feature.KV_PEER_COPY,
    }
)


class ReferenceProvider(BackendProvider):
    """Arrays are :class:`DeviceArray`; every operation is its float64 reference.

    Kernels, and copies without a stream of their own, go to the stream that is entered in the
    calling thread if it is of the arrays' device, else to the device's default stream. No stream
    has an order with another but what events give it, the default streams included.
    """

    name = "reference"
    device_type = "reference"
    array_framework = "numpy"

    def __init__(self, config: Mapping[str, Any] | ProviderConfig | None = None) -> None:
        super().__init__(config)
        self._workers = Workers()
        self._default_streams = {
            device: ReferenceStream(self, device, self._workers) for device in self._devices()
        }

    def current_stream(self, device: str) -> ReferenceStream:
        """The stream that this thread's work on ``device`` goes to."""
        entered = entered_stream(self)
        if isinstance(entered, ReferenceStream) and entered.device == device:
            return entered
        return self._default_streams[device]

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._workers.close()

    def _device_count(self) -> int:
        return DEVICE_COUNT

    def _devices(self) -> list[str]:
        return [self._device_name(index) for index in range(DEVICE_COUNT)]

    def _capability(self) -> CapabilityDescriptor:
        total, free = self._device_memory(self.device)
        return CapabilityDescriptor(
            device_name=_NAME,
            device_type=self.device_type,
            total_memory_bytes=total,
            available_memory_bytes=free,
            supported_dtypes=list(_ARRAY_DTYPES),
            supported_kernels=list(dict.fromkeys(item.kind for item in OPERATIONS.values())),
            has_stream=True,
            has_event=True,
            has_kv_block_copy=True,
            has_kv_block_migrate=True,
            max_memory_mb=total >> 20,
            provider=self.name,
            contract=self.contract,
            array_framework=self.array_framework,
            features=_FEATURES,
            operations=dict.fromkeys(OPERATIONS, FLOATING),
            kv=KVCapability(_KV_DTYPES, ORDERS, PACKINGS, alignment=MAX_ALIGNMENT),
            devices=tuple(
                DeviceInfo(index, _NAME, total, _ARRAY_DTYPES) for index in range(DEVICE_COUNT)
            ),
            peer_access=frozenset({(0, 1), (1, 0)}),
            versions={"numpy": np.__version__, "ml_dtypes": ml_dtypes.__version__},
        )

    def _features(self) -> frozenset[Feature]:
        return _FEATURES

    def _array_dtypes(self) -> tuple[DType, ...]:
        return _ARRAY_DTYPES

    def _memory_limit(self, account: str) -> int:
        limit = None if account == HOST else self.config.memory_limit
        return limit or DEVICE_BYTES

    def _device_memory(self, account: str) -> tuple[int, int]:
        # The simulated memories belong to this provider alone, and have what the limit allows.
        total = self._memory_limit(account)
        held = self._ledgers.of(account).stats(device_total=total, device_free=0)
        return total, total - held["reserved_bytes"]

    def _is_native(self, array: Any) -> bool:
        return isinstance(array, DeviceArray)

    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        nbytes = dtype.nbytes(math.prod(shape))
        storage = charged_storage(nbytes, self._ledgers.of(self._account(place)))
        device = HOST if place.location == "host" else place.device
        return DeviceArray(storage.memory.view(dtype.numpy).reshape(shape), storage, device)

    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        made = self._empty(array.shape, DType.parse(array.dtype), place)
        made.raw()[...] = array
        return made

    def _to_numpy(self, array: DeviceArray) -> npt.NDArray[Any]:
        """Waits for the task that was last asked to write the array's memory.

        That task follows earlier ones of its stream, so that a failure of what led to this array
        is raised too. Writers on several streams without events between them are a race.
        """
        settle([array.require_live().storage.writer])
        return np.array(array.raw(), order="C")

    def _write_back(self, array: DeviceArray, values: npt.NDArray[Any]) -> None:
        target, own = array.require_live().raw(), values.copy()

        def work() -> None:
            target[...] = own

        device = self.device if array.device == HOST else array.device
        self.current_stream(device).submit(work, [array.storage])

    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        return ReferenceKVPool(self, layout, num_blocks, place)

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return ReferenceKVCopyPlan(source, target)

    def _register_kernels(self, table: KernelTable) -> None:
        kernels.register(table, self)

    def _create_stream(self, priority: int) -> ReferenceStream:
        return ReferenceStream(self, self.device, self._workers, priority)

    def _create_event(self) -> ReferenceEvent:
        return ReferenceEvent(self)

    def _synchronize(self) -> None:
        self._workers.synchronize()


def create_reference_backend(
    config: Mapping[str, Any] | ProviderConfig | None = None,
) -> ReferenceProvider:
    """A new reference provider, with two devices of its own; see :class:`ProviderConfig`."""
    return ReferenceProvider(config)
