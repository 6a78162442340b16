"""Huawei's NPUs as a backend, by torch_npu.

Written against torch_npu 2.13 and its schemas; it has not run on such hardware yet. Made by
:func:`sagellm_backend.ascend.startup.create_ascend_backend`, which imports torch_npu first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

from sagellm_backend import frameworks
from sagellm_backend.ascend import attention, attention_310p, faults, kernels, npu, soc, startup
from sagellm_backend.ascend.graphs import AscendGraph
from sagellm_backend.ascend.linear import NZLinear
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.collectives import Communicator
from sagellm_backend.config import ProviderConfig
from sagellm_backend.dtypes import DType
from sagellm_backend.graphs import Graph
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.torch_support.accelerator import AcceleratorProvider
from sagellm_backend.torch_support.errors import is_blocking

_INDICES = (DType.INT32, DType.INT64)

Config: TypeAlias = "Mapping[str, Any] | ProviderConfig | None"


class AscendProvider(AcceleratorProvider):
    """Every operation on an NPU, in fp32, fp16 and bf16; the vendor's operators where they fit.

    KV blocks have 128 tokens, indices are int32. Streams have no priorities. Graphs are offered on
    the families A2 and A3, unless the process was started with ASCEND_LAUNCH_BLOCKING=1: then every
    operation is waited for, so that a failure of its work is raised by its own call.

    Making one starts the driver and a context on its device. Raises :class:`UnavailableError` with
    what is wrong there and what to do, :class:`OutOfMemoryError` where the device is full.
    """

    name = "ascend"
    device_type = "npu"
    module: ClassVar[Any] = npu
    comm_backend = "hccl"
    kv_dtypes: ClassVar[tuple[DType, ...]] = (DType.FP16, DType.BF16, DType.FP32, DType.INT8)
    withheld: ClassVar[frozenset[Feature]] = frozenset({Feature.STREAM_PRIORITY})

    def __init__(self, config: Config = None) -> None:
        parsed = _parse(config)
        self.family = startup.begin(self.module)
        if self.family.nz:
            npu.allow_nz()
        super().__init__(parsed)
        startup.occupy(self.module, self.device)

    @functools.cached_property
    def _declared(self) -> frozenset[Feature]:
        absent = set()
        # What is captured may not be waited for.
        if not self.family.graphs or is_blocking(self.device):
            absent.add(Feature.GRAPH)
        if not self.family.reduces:
            absent.add(Feature.COLLECTIVE)
        return super()._declared - absent

    def _communicator(
        self, rank: int | None, world_size: int | None, init_method: str | None, timeout_s: float
    ) -> Communicator:
        # torch.distributed is loaded by those who use it.
        from sagellm_backend.ascend.collectives import HCCLCommunicator

        kind = type("HCCLCommunicator", (HCCLCommunicator,), {"reduces": self.family.reduces})
        return self._join(rank, world_size, init_method, timeout_s, kind)

    def _capture(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Graph:
        return AscendGraph(self, self._graph_pool, function, inputs)

    def _array_dtypes(self) -> tuple[DType, ...]:
        return tuple(dict.fromkeys((*self.compute_dtypes, *self.kv_dtypes, *_INDICES)))

    def _register_kernels(self, table: KernelTable) -> None:
        super()._register_kernels(table)
        for operation, (kernel, limits) in self._offers().items():
            supports, watched = self._limited(limits), self._as_registered(operation, kernel)
            table.register(operation, watched, name="npu", priority=10, supports=supports)

    def _offers(self) -> dict[str, kernels.Offer]:
        found = dict(offers(self.family))
        if "linear" in self.family.fused:
            found["linear"] = self._nz.linear, kernels.half_limits
        return found

    @functools.cached_property
    def _nz(self) -> NZLinear:
        account = self.device
        return NZLinear(lambda: self._ledgers.of(account), lambda: self._device_memory(account))

    def _clear_cache(self) -> None:
        self._nz.clear(for_good=self.closed)
        super()._clear_cache()

    def _as_registered(self, operation: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        watched = faults.settled if is_blocking(self.device) else faults.named
        return watched(operation, super()._as_registered(operation, kernel))

    def _limited(self, limits: Callable[..., list[str]]) -> Callable[..., list[str]]:
        def supports(**static: Any) -> list[str]:
            return [*self._supports(**static), *limits(**static)]

        return supports

    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        found.compute_capability = self.family.name
        found.kv = replace(found.kv, block_sizes=(soc.BLOCK_SIZE,))
        found.devices = tuple(
            replace(item, facts={**item.facts, "family": self.family.name})
            for item in found.devices
        )
        version = frameworks.version_of("torch_npu")
        if version:
            found.versions["torch_npu"] = version
        return found


class AscendFP16Provider(AscendProvider):
    """The same on chips without bf16: 310P and the first 910."""

    compute_dtypes = (DType.FP32, DType.FP16)
    kv_dtypes: ClassVar[tuple[DType, ...]] = (DType.FP16, DType.FP32, DType.INT8)


def create(config: Config = None) -> AscendProvider:
    """A new provider of the class that the chip asks for; torch_npu is imported already."""
    family = startup.begin(npu)
    kind = AscendProvider if DType.BF16 in family.dtypes else AscendFP16Provider
    return kind(config)


def offers(family: soc.Family) -> dict[str, kernels.Offer]:
    """The operations that the vendor's operators compute on a family."""
    found = dict(kernels.KERNELS_310P if family.nz else kernels.KERNELS)
    chosen = attention_310p if family.nz else attention
    found["attention"] = (chosen.attention, chosen.limits)
    return {name: offer for name, offer in found.items() if name in family.fused}


def _parse(config: Config) -> ProviderConfig:
    """Settings; v0.1's blocks are of the size that pools have here unless the caller says else."""
    parsed = ProviderConfig.parse(config)
    given = isinstance(config, ProviderConfig) or "kv_layout" in (config or {})
    if given:
        return parsed
    return replace(parsed, kv_layout=replace(parsed.kv_layout, block_size=soc.BLOCK_SIZE))
