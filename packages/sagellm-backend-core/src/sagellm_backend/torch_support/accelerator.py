"""A provider for any torch accelerator, filled in from its device module and a few words."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar

import numpy.typing as npt
import torch

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.capability import CapabilityDescriptor, Feature, KVCapability
from sagellm_backend.collectives import COLLECTIVES
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.graphs import Graph
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.kv import KVCopyPlan, KVLayout, KVPool
from sagellm_backend.kv.layout import ORDERS, PACKINGS
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.torch_support import (
    device_kernels,
    kernels,
    memory,
    registration,
    step,
    streams,
)
from sagellm_backend.torch_support.arrays import speaks_dlpack
from sagellm_backend.torch_support.device_kv import DeviceKVCopyPlan
from sagellm_backend.torch_support.errors import check
from sagellm_backend.torch_support.graph_pool import GraphPool
from sagellm_backend.torch_support.graphs import TorchGraph, graph_class
from sagellm_backend.torch_support.misuse import MisuseError
from sagellm_backend.torch_support.provider import TorchProvider, plain
from sagellm_backend.torch_support.registration import Registrar, Registrations
from sagellm_backend.torch_support.streams import TorchEvent, TorchStream

_KV_DTYPES = (DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8)


class AcceleratorProvider(TorchProvider):
    """Every operation in plain torch on one kind of torch device.

    A subclass gives ``name``, ``device_type`` and ``module``, and what it has of its own: kernels
    in ``fast_kernels``, a ``comm_backend``, dtypes that the device lacks. Streams, events, graphs,
    pinned memory and peer copies are offered as far as the module has them.

    Arrays and pools are accounted for; what kernels allocate for their results belongs to torch,
    whose statistics are the module's. Arrays of location ``host`` are CPU tensors, pinned where
    that is offered; no kernel takes them.
    """

    module: ClassVar[Any]
    """The device module: ``torch.cuda``, ``torch.npu``, or what a PrivateUse1 device registered."""
    comm_backend: ClassVar[str] = ""
    """The backend word of torch.distributed; without one, groups are not offered."""
    kv_dtypes: ClassVar[tuple[DType, ...]] = _KV_DTYPES
    """What KV pools may hold."""
    simulated: ClassVar[bool] = False
    """Whether the device is no hardware: its entries in the descriptor then say ``level: L1``."""
    flush_subnormals: ClassVar[tuple[DType, ...]] = ()
    """The dtypes in which the device may take subnormal numbers for zero."""
    withheld: ClassVar[frozenset[Feature]] = frozenset()
    """Features that the module seems to have and the device does not keep."""
    registrar: ClassVar[Registrar | None] = None
    """What registers host memory with the device, where something does."""
    fast_kernels: ClassVar[dict[str, Callable[..., Any]]] = {}
    """By operation, the kernels to be taken before the plain ones."""

    def _device_count(self) -> int:
        return int(self.module.device_count())

    @functools.cached_property
    def _declared(self) -> frozenset[Feature]:
        found = {Feature.KV_POOL, Feature.KV_HOST_POOL} | streams.module_features(self.module)
        if memory.can_pin():
            found.add(Feature.PINNED_MEMORY)
        if speaks_dlpack(torch.device(self.device)):
            found.add(Feature.DLPACK)
        if self._device_count() > 1:
            found.add(Feature.KV_PEER_COPY)
        if self.comm_backend:
            found.add(Feature.COLLECTIVE)
        if self.registrar is not None:
            found.add(Feature.HOST_REGISTER)
        if graph_class(self.module) is not None:
            found.add(Feature.GRAPH)
        return frozenset(found - self.withheld)

    @functools.cached_property
    def _peers(self) -> frozenset[tuple[int, int]]:
        """Pairs of devices that reach each other's memory; copies go between all of them."""
        pairs = itertools.permutations(range(self._device_count()), 2)
        reaches = getattr(self.module, "can_device_access_peer", None)
        return frozenset(pair for pair in pairs if reaches is None or reaches(*pair))

    def _features(self) -> frozenset[Feature]:
        return self._declared

    @functools.cached_property
    def _devices(self) -> tuple[DeviceInfo, ...]:
        return tuple(
            DeviceInfo(
                index,
                self.module.get_device_name(index),
                self._device_memory(self.device)[0] if index == self.config.device else None,
                self.compute_dtypes,
                {"level": "L1"} if self.simulated else {},
            )
            for index in range(self._device_count())
        )

    def _capability(self) -> CapabilityDescriptor:
        total, free = self._device_memory(self.device)
        features = self._declared
        offered = [OPERATIONS[name] for name in self.kernels.names() if name in OPERATIONS]
        peers = Feature.KV_PEER_COPY in features
        collectives = list(COLLECTIVES) if Feature.COLLECTIVE in features else []
        return CapabilityDescriptor(
            device_name=self._devices[self.config.device].name,
            device_type=self.device_type,
            total_memory_bytes=total,
            available_memory_bytes=free,
            supported_dtypes=list(self.compute_dtypes),
            supported_kernels=list(dict.fromkeys(item.kind for item in offered)),
            has_stream=Feature.STREAM in features,
            has_event=Feature.EVENT in features,
            has_collective=Feature.COLLECTIVE in features,
            has_graph_exec=Feature.GRAPH in features,
            supported_collectives=collectives,
            has_kv_block_copy=True,
            has_kv_block_migrate=peers,
            max_memory_mb=total >> 20,
            provider=self.name,
            contract=self.contract,
            array_framework=self.array_framework,
            features=features,
            operations={item.name: self.compute_dtypes for item in offered},
            kv=KVCapability(self.kv_dtypes, ORDERS, PACKINGS, alignment=memory.MAX_ALIGNMENT),
            devices=tuple(replace(item, facts=dict(item.facts)) for item in self._devices),
            peer_access=self._peers if peers else frozenset(),
            flush_subnormals=self.flush_subnormals,
            versions={"torch": torch.__version__},
        )

    def _device_memory(self, account: str) -> tuple[int, int]:
        if account == HOST:
            return memory.host_memory()
        return memory.device_memory(self.module, torch.device(account))

    def _require_native(self, name: str, array: Any) -> None:
        # Arrays of location "host" can be read; to kernels they are foreign, as _is_native says.
        if not (isinstance(array, torch.Tensor) and array.is_cpu and plain(array)):
            super()._require_native(name, array)

    def _allocate(self, nbytes: int, place: Place, alignment: int) -> torch.Tensor:
        on_host = place.location == HOST
        self._used.add(place.device)
        if on_host and nbytes >= registration.FROM and nbytes & (nbytes - 1) and self._registers():
            return self._registrations.allocate(nbytes, max(alignment, memory.ALIGNMENT))
        return memory.allocate(
            nbytes,
            torch.device("cpu" if on_host else place.device),
            lambda: self._device_memory(self._account(place)),
            pinned=on_host and Feature.PINNED_MEMORY in self._declared,
            alignment=max(alignment, memory.ALIGNMENT),
        )

    def _registers(self) -> bool:
        return {Feature.HOST_REGISTER, Feature.PINNED_MEMORY} <= self._declared

    @functools.cached_property
    def _registrations(self) -> Registrations:
        assert self.registrar is not None
        return Registrations(self.registrar, self._synchronize)

    def _register_host_memory(self, array: npt.NDArray[Any]) -> AbstractContextManager[None]:
        return self._registrations.context(array)

    def _allocate_charged(self, nbytes: int, place: Place) -> torch.Tensor:
        ledger = self._ledgers.of(self._account(place))
        return memory.charge(nbytes, ledger, lambda: self._allocate(nbytes, place, 1))

    def _to_numpy(self, array: torch.Tensor) -> Any:
        self._synchronize()  # whichever stream makes it
        return super()._to_numpy(array)

    def _clear_cache(self) -> None:
        with check("clear the cache", self.device):
            self.module.empty_cache()

    def _synchronize(self) -> None:
        for device in sorted(self._used):
            with check("synchronize", device):
                self.module.synchronize(torch.device(device))

    @functools.cached_property
    def _used(self) -> set[str]:
        """The devices that may have work: others would be started by being asked."""
        return {self.device}

    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        pool = super()._kv_pool(layout, num_blocks, place)
        if place.location != HOST:
            # The memory may be that of an array whose last work is still queued.
            streams.settle(self.module, torch.device(place.device))
        return pool

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return DeviceKVCopyPlan(source, target, self.module)

    def _register_kernels(self, table: KernelTable) -> None:
        guarded = {
            name: self._as_registered(name, kernel)
            for name, kernel in device_kernels.KERNELS.items()
        }
        kernels.register(table, self._supports, guarded)
        kernels.register(table, self._supports, self.fast_kernels, name=self.name, priority=10)

    def _prepare_attention(self, metadata: AttentionMetadata) -> None:
        if metadata.mode != "paged_decode":  # which takes its lengths from the device
            super()._prepare_attention(metadata)
        step.prepare(metadata, torch.device(self.device))

    def _capture(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Graph:
        return TorchGraph(self, self._graph_pool, function, inputs)

    @functools.cached_property
    def _graph_pool(self) -> GraphPool:
        """What the graphs of this provider share."""
        return GraphPool(self.module, torch.device(self.device), self._ledgers.of(self.device))

    def _as_registered(self, operation: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel as it is put into the table for an operation."""
        del operation
        return self._on_device(kernel)

    @staticmethod
    def _on_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel, refusing CPU tensors: torch would compute them on the CPU in silence."""

        @functools.wraps(kernel)
        def guarded(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if first.is_cpu:
                raise MisuseError
            return kernel(first, *args, **kwargs)

        return guarded

    def _create_stream(self, priority: int) -> TorchStream:
        return TorchStream(self, self.module, torch.device(self.device), priority)

    def _create_event(self) -> TorchEvent:
        timing = Feature.EVENT_TIMING in self._declared
        return TorchEvent(self, streams.native_event(self.module, timing=timing))
