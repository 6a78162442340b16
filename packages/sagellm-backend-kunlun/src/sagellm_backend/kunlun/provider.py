"""Kunlun XPUs as a backend, by Paddle.

Written against Paddle 3.3 and what its sources say of XPUs; it has not run on such hardware yet.
Made by :func:`sagellm_backend.kunlun.startup.create_kunlun_backend`, which imports Paddle first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import paddle

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CapabilityDescriptor, Feature, KVCapability, Limits
from sagellm_backend.collectives import COLLECTIVES, Communicator
from sagellm_backend.config import ProviderConfig
from sagellm_backend.devices import DeviceInfo, parse_device_str
from sagellm_backend.dtypes import DType
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.kunlun import arrays, attention, kernels, memory, startup, xpu_kernels
from sagellm_backend.kunlun.errors import check
from sagellm_backend.kunlun.kv import KunlunKVCopyPlan, KunlunKVPool
from sagellm_backend.kunlun.launch import Launcher
from sagellm_backend.kunlun.places import XPU, device_type_of
from sagellm_backend.kunlun.runtime import host_memory, runtime_of
from sagellm_backend.kunlun.streams import KunlunEvent, KunlunStream
from sagellm_backend.kv import KVCopyPlan, KVLayout, KVPool
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.dispatch import KernelTable

_XPU_DTYPES = (DType.FP32, DType.FP16, DType.BF16)
_UNPROVEN = "L0 only: Paddle's CPU kernels, which stand in for the device's, have no half types"
# FastDeploy's batches on XPUs; a kernel of Kunlun's has failed at 1024 sequences.
_MAX_BATCH = 512


class KunlunProvider(BackendProvider):
    """Every operation in Paddle; on XPUs by fusion kernels where they keep the contract.

    ``places`` are the Paddle places to use instead of XPUs, of one type and numbered from 0. There
    only fp32 is computed: Paddle's CPU library, which computes for a device without kernels of its
    own, has no half types.

    Making one starts the driver and a context on its device. Raises :class:`UnavailableError` with
    what is wrong there and what to do, :class:`OutOfMemoryError` where the device is full.
    """

    name = "kunlun"
    device_type = XPU
    array_framework = "paddle"

    def __init__(
        self,
        config: Mapping[str, Any] | ProviderConfig | None = None,
        *,
        places: tuple[str, ...] = (),
    ) -> None:
        # The places', not the class's: the contract has one for each provider that is made.
        self.device_type = device_type_of(places)  # type: ignore[misc]
        self.runtime = runtime_of(self.device_type)
        self.launcher = Launcher(self, self.runtime)
        self.compute_dtypes = (DType.FP32,) if self.runtime.simulated else _XPU_DTYPES
        startup.begin(self.runtime, len(places))
        self._count = len(places) or self.runtime.count()
        self._used: set[int] = set()
        super().__init__(config)
        self._used.add(self.config.device)
        startup.occupy(self.runtime, self.config.device, self.device)

    def _device_count(self) -> int:
        return self._count

    @functools.cached_property
    def _declared(self) -> frozenset[Feature]:
        found = {Feature.KV_POOL, Feature.KV_HOST_POOL, Feature.COLLECTIVE}
        place = self.runtime.place(self.config.device)
        if self.runtime.has_streams:
            found |= {Feature.STREAM, Feature.EVENT}
        if memory.can_pin(place):
            found.add(Feature.PINNED_MEMORY)
        if arrays.speaks_dlpack(paddle.empty([1], "float32", device=place)):
            found.add(Feature.DLPACK)
        if self._count > 1:
            found.add(Feature.KV_PEER_COPY)
        return frozenset(found)

    def _features(self) -> frozenset[Feature]:
        return self._declared

    def _array_dtypes(self) -> tuple[DType, ...]:
        return tuple(arrays.PADDLE_DTYPES)

    @functools.cached_property
    def _devices(self) -> tuple[DeviceInfo, ...]:
        simulated = self.runtime.simulated
        facts = {"level": "L1", "fp16": _UNPROVEN, "bf16": _UNPROVEN} if simulated else {}
        total = self._device_memory(self.device)[0]
        return tuple(
            DeviceInfo(
                index,
                f"Paddle place {self._device_name(index)}" if simulated else "Kunlun XPU",
                total if index == self.config.device else None,
                self.compute_dtypes,
                facts,
            )
            for index in range(self._count)
        )

    def _capability(self) -> CapabilityDescriptor:
        total, free = self._device_memory(self.device)
        features = self._declared
        offered = [OPERATIONS[name] for name in self.kernels.names() if name in OPERATIONS]
        pairs = {(a, b) for a in range(self._count) for b in range(self._count) if a != b}
        return CapabilityDescriptor(
            device_name=self._devices[self.config.device].name,
            device_type=self.device_type,
            total_memory_bytes=total,
            available_memory_bytes=free,
            supported_dtypes=list(self.compute_dtypes),
            supported_kernels=list(dict.fromkeys(item.kind for item in offered)),
            has_stream=Feature.STREAM in features,
            has_event=Feature.EVENT in features,
            has_collective=True,
            supported_collectives=list(COLLECTIVES),
            has_kv_block_copy=True,
            has_kv_block_migrate=self._count > 1,
            max_memory_mb=total >> 20,
            max_batch_size=_MAX_BATCH,
            provider=self.name,
            contract=self.contract,
            array_framework=self.array_framework,
            features=features,
            operations={item.name: self.compute_dtypes for item in offered},
            kv=KVCapability(
                (*_XPU_DTYPES, DType.FP8, DType.INT8),
                ("HND", "NHD"),
                ("separate",),
                alignment=memory.MAX_ALIGNMENT,
            ),
            limits=Limits(max_batch=_MAX_BATCH),
            devices=tuple(replace(item, facts=dict(item.facts)) for item in self._devices),
            peer_access=frozenset(pairs),
            versions={"paddle": str(paddle.__version__)},
        )

    def _device_memory(self, account: str) -> tuple[int, int]:
        if account == HOST:
            return host_memory()
        with check("memory of the device", account):
            return self.runtime.memory(_index(account))

    def _is_native(self, array: Any) -> bool:
        return (
            isinstance(array, paddle.Tensor)
            and array.is_dense()
            and self.runtime.index_of(array.place) is not None
        )

    def _require_native(self, name: str, array: Any) -> None:
        # Arrays of location "host" can be read; to kernels they are foreign, as _is_native says.
        if not (isinstance(array, paddle.Tensor) and array.is_dense() and on_host(array)):
            super()._require_native(name, array)

    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> Any:
        nbytes = dtype.nbytes(math.prod(shape))
        ledger = self._ledgers.of(self._account(place))
        return memory.charged(nbytes, ledger, lambda: self.allocate(shape, dtype, place))

    def allocate(self, shape: tuple[int, ...], dtype: DType, place: Place) -> Any:
        """An uninitialised tensor, charged to nobody."""
        nbytes, index = dtype.nbytes(math.prod(shape)), _index(place.device)
        kind, where = arrays.PADDLE_DTYPES[dtype], self.runtime.place(index)
        account = self._account(place)
        if place.location == HOST:
            where = paddle.CPUPlace()
        self._used.add(index)
        with self.launcher.on(index):
            made = memory.empty(
                shape, kind, where, nbytes, lambda: self._device_memory(account), account
            )
        return memory.pin(made) if self._pins(place) and nbytes else made

    def _pins(self, place: Place) -> bool:
        return place.location == HOST and Feature.PINNED_MEMORY in self._declared

    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> Any:
        made = self._empty(array.shape, DType.parse(array.dtype), place)
        self._write_back(made, array)
        return made

    def _to_numpy(self, array: Any) -> npt.NDArray[Any]:
        with check("to_numpy", self.device):
            self._synchronize()  # whichever stream makes it
            with self.launcher.on(self._index_of(array)):
                return arrays.to_numpy(array)

    def _write_back(self, array: Any, values: npt.NDArray[Any]) -> None:
        if values.size:
            with (
                check("copy from host", self.device, values.nbytes),
                self.launcher.on(self._index_of(array)),
            ):
                arrays.overwrite(array, values)

    def runtime_index(self, device: str) -> int:
        """The number of one of this provider's devices."""
        return _index(device)

    def write(self, array: Any, values: npt.NDArray[Any]) -> None:
        """Overwrite an array by host values of equal shape and dtype, behind all work so far."""
        self._synchronize()
        self._write_back(array, values)

    def _index_of(self, array: Any) -> int:
        found = self.runtime.index_of(array.place)
        return self.config.device if found is None else found

    def _clear_cache(self) -> None:
        with check("empty_cache", self.device):
            self.runtime.empty_cache()

    def _synchronize(self) -> None:
        for index in sorted(self._used):
            with check("synchronize", self._device_name(index)):
                self.runtime.synchronize(index)

    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        return KunlunKVPool(self, layout, num_blocks, place)

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return KunlunKVCopyPlan(source, target)

    def _register_kernels(self, table: KernelTable) -> None:
        for operation, kernel in kernels.KERNELS.items():
            launched = self.launcher.wrap(operation, kernel)
            table.register(operation, launched, name="paddle", supports=self._supports)
        if self.runtime.simulated:
            return
        for operation, (kernel, limits) in xpu_kernels.KERNELS.items():
            launched = self.launcher.wrap(operation, kernel)
            supports = self._limited(limits)
            table.register(operation, launched, name="xpu", priority=10, supports=supports)

    def _supports(self, dtype: DType | None = None, **_: Any) -> list[str]:
        if dtype is None or dtype in self.compute_dtypes:
            return []
        offered = ", ".join(item.value for item in self.compute_dtypes)
        return [f"dtype {dtype.value} is not computed in, only {offered}"]

    def _limited(self, limits: Callable[..., list[str]]) -> Callable[..., list[str]]:
        def supports(**static: Any) -> list[str]:
            return [*self._supports(**static), *limits(**static)]

        return supports

    def _prepare_attention(self, metadata: AttentionMetadata) -> None:
        with self.launcher.on(self.config.device):
            attention.prepare(metadata, self.runtime.place(self.config.device))

    def _create_stream(self, priority: int) -> KunlunStream:
        return KunlunStream(self, self.config.device, priority)

    def _create_event(self) -> KunlunEvent:
        return KunlunEvent(self, self.config.device)

    def _communicator(
        self, rank: int | None, world_size: int | None, init_method: str | None, timeout_s: float
    ) -> Communicator:
        # Paddle's collectives are loaded by those who use them.
        from sagellm_backend.kunlun import collectives

        return collectives.join(self, rank, world_size, init_method, timeout_s)


def on_host(array: Any) -> bool:
    """Whether a tensor lies in host memory."""
    place = array.place
    return bool(place.is_cpu_place() or place.is_xpu_pinned_place())


def _index(device: str) -> int:
    return parse_device_str(device)[1] or 0
