"""The CPU as a backend: torch on host memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from sagellm_backend.capability import (
    CapabilityDescriptor,
    Feature,
    KVCapability,
)
from sagellm_backend.collectives import COLLECTIVES
from sagellm_backend.config import ProviderConfig
from sagellm_backend.cpu import kernels, linear, machine, matmul, memory
from sagellm_backend.cpu.graphs import CPUGraph
from sagellm_backend.cpu.kv import CPUKVCopyPlan
from sagellm_backend.cpu.linear import PackedLinear
from sagellm_backend.cpu.streams import CPUEvent, CPUStream
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.graphs import Graph
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVPool
from sagellm_backend.kv.layout import ORDERS, PACKINGS
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.torch_support import kernels as plain
from sagellm_backend.torch_support.arrays import TORCH_DTYPES
from sagellm_backend.torch_support.kernels import register
from sagellm_backend.torch_support.provider import TorchProvider

_FEATURES = frozenset(
    {
        Feature.STREAM,
        Feature.STREAM_QUERY,
        Feature.EVENT,
        Feature.EVENT_TIMING,
        Feature.KV_POOL,
        Feature.KV_HOST_POOL,
        Feature.COLLECTIVE,
        Feature.DLPACK,
        Feature.GRAPH,
    }
)
_MAX_ALIGNMENT = 1 << 21
_KV_DTYPES = (DType.FP32, DType.FP16, DType.BF16, DType.FP8, DType.INT8)


@cache
def _processor() -> DeviceInfo:
    return machine.processor()


class CPUBackendProvider(TorchProvider):
    """Every operation on the host's processor, in fp32, bf16 and fp16 with fp32 accumulation.

    Calls return when their work is done. Arrays and pools are accounted for; what kernels allocate
    for their results belongs to torch, which keeps no count of it on the CPU. Host pools and device
    pools lie in the same memory and share one limit.
    """

    name = "cpu"
    device_type = "cpu"
    comm_backend = "gloo"
    _packed: PackedLinear | None

    def _device_count(self) -> int:
        return 1

    def _device_name(self, index: int) -> str:
        return "cpu"

    def _account(self, place: Place) -> str:
        return place.device

    def _device_memory(self, account: str) -> tuple[int, int]:
        return machine.memory()

    def _features(self) -> frozenset[Feature]:
        return _FEATURES

    def _capability(self) -> CapabilityDescriptor:
        device = _processor()
        total, free = machine.memory()
        offered = [OPERATIONS[name] for name in self.kernels.names() if name in OPERATIONS]
        return CapabilityDescriptor(
            device_name=device.name,
            device_type=self.device_type,
            compute_capability=torch.backends.cpu.get_cpu_capability(),
            total_memory_bytes=total,
            available_memory_bytes=free,
            supported_dtypes=list(self.compute_dtypes),
            supported_kernels=list(dict.fromkeys(item.kind for item in offered)),
            has_stream=True,
            has_event=True,
            has_collective=True,
            has_graph_exec=True,
            supported_collectives=list(COLLECTIVES),
            has_kv_block_copy=True,
            has_kv_block_migrate=False,
            max_memory_mb=total // (1 << 20),
            provider=self.name,
            array_framework=self.array_framework,
            features=_FEATURES,
            operations={item.name: self.compute_dtypes for item in offered},
            kv=KVCapability(_KV_DTYPES, ORDERS, PACKINGS, alignment=_MAX_ALIGNMENT),
            # oneDNN's bf16 products flush on AVX512-BF16 and AMX; elsewhere they need not.
            flush_subnormals=(DType.BF16,),
            devices=(replace(device, facts=dict(device.facts)),),  # the caller owns the facts
            versions={"torch": torch.__version__},
        )

    def _allocate(self, nbytes: int, place: Place, alignment: int) -> torch.Tensor:
        return memory.allocate(nbytes, alignment)

    def _allocate_charged(self, nbytes: int, place: Place) -> torch.Tensor:
        return memory.allocate_charged(nbytes, self._ledgers.of(place.device))

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> CPUKVCopyPlan:
        return CPUKVCopyPlan(source, target)

    def _register_kernels(self, table: KernelTable) -> None:
        super()._register_kernels(table)
        register(table, self._supports, kernels.KERNELS, name="cpu", priority=10)
        table.register(
            "matmul",
            plain.matmul,
            name="cpu",
            priority=10,
            supports=self._supports,
            shortcut=matmul.shortcut,
        )
        self._packed = None
        if linear.dtypes():
            self._packed = PackedLinear(partial(self._ledgers.of, self.device))
            packed = {"linear": self._packed.linear}
            register(table, self._packs, packed, name="packed", priority=10)

    def _packs(self, dtype: DType | None = None, **static: Any) -> list[str]:
        if dtype is None or TORCH_DTYPES.get(dtype) in linear.dtypes():
            return self._supports(dtype, **static)
        return [f"oneDNN does not multiply packed {dtype.value} weights here"]

    def _clear_cache(self) -> None:
        if self._packed is not None:
            self._packed.clear(for_good=self.closed)

    def _capture(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Graph:
        return CPUGraph(self._ledgers.of(self.device), function, inputs)

    def _create_stream(self, priority: int) -> CPUStream:
        return CPUStream(self, priority)

    def _create_event(self) -> CPUEvent:
        return CPUEvent(self)


def create_cpu_backend(
    config: Mapping[str, Any] | ProviderConfig | None = None,
) -> CPUBackendProvider:
    """A new CPU provider; see :class:`~sagellm_backend.config.ProviderConfig`."""
    return CPUBackendProvider(config)
