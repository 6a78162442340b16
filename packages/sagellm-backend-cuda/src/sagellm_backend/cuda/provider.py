"""NVIDIA GPUs as a backend, and Hygon DCUs: both are ``torch.cuda``.

Written against torch 2.13 and its schemas; it has not run on such hardware yet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import torch

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.collectives import Communicator
from sagellm_backend.config import ProviderConfig
from sagellm_backend.cuda import (
    asked,
    attention,
    batches,
    export,
    flashinfer_kernels,
    startup,
    telemetry,
)
from sagellm_backend.cuda.batches import DriverBatches
from sagellm_backend.cuda.compiled import Writer
from sagellm_backend.cuda.flashinfer_plans import WORKSPACE, Plans
from sagellm_backend.cuda.kv import CUDAKVCopyPlan
from sagellm_backend.cuda.memory import RuntimeRegistrar
from sagellm_backend.cuda.telemetry import Telemetry
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, UnavailableError
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.kv import KVCopyPlan, KVPool
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.torch_support import device_kernels, kernels
from sagellm_backend.torch_support.accelerator import AcceleratorProvider
from sagellm_backend.torch_support.errors import check

Config: TypeAlias = "Mapping[str, Any] | ProviderConfig | None"


class CUDAProvider(AcceleratorProvider):
    """Every operation on an NVIDIA GPU, in fp32, fp16 and bf16.

    Making one starts the driver and a context on its device. Raises :class:`UnavailableError` with
    what is wrong there and what to do, :class:`OutOfMemoryError` where the device is full.
    """

    name = "cuda"
    device_type = "cuda"
    module: ClassVar[Any] = torch.cuda
    comm_backend = "nccl"
    registrar = RuntimeRegistrar()
    build: ClassVar[str] = "cuda"
    """What torch must have been built for: ``cuda`` or ``hip``."""

    def __init__(self, config: Config = None) -> None:
        parsed = ProviderConfig.parse(config)
        startup.begin(self.module, self.build, self.name)
        super().__init__(parsed)
        startup.occupy(self.module, self.device, self.build, self.name)

    def _communicator(
        self, rank: int | None, world_size: int | None, init_method: str | None, timeout_s: float
    ) -> Communicator:
        # torch.distributed is loaded by those who use it.
        from sagellm_backend.cuda.collectives import NCCLCommunicator

        return self._join(rank, world_size, init_method, timeout_s, NCCLCommunicator)

    def telemetry(self, device: str | None = None) -> Telemetry:
        """What a device measures of itself; see :func:`.telemetry.read`. The default one if None."""
        where = self.torch_device("device" if device is None else device)
        return telemetry.read(self.module, str(where), self.name)

    def _compute_capability(self) -> tuple[int, int]:
        with check("get_device_capability", self.device):
            major, minor = self.module.get_device_capability(torch.device(self.device))
        return int(major), int(minor)

    @functools.cached_property
    def _batches(self) -> DriverBatches | None:
        return batches.find() if self.build == "cuda" else None  # the bindings are NVIDIA's

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return CUDAKVCopyPlan(source, target, self.module, self._batches)

    @functools.cached_property
    def _declared(self) -> frozenset[Feature]:
        found = super()._declared
        if self.build == "hip" or not export.offered(self.module):
            return found
        return (found | {Feature.KV_EXPORT}) - self.withheld

    @functools.cached_property
    def _exports(self) -> export.Exports:
        return export.Exports(self, self.module)

    def _kv_export(self, pool: Any) -> bytes:
        pool._require_open()  # noqa: SLF001 - core has no other word for it
        if pool.location == HOST:
            raise CapabilityError("export of a host pool", self.name, "CUDA shares device memory.")
        return self._exports.handle_of(pool)

    def _kv_open(self, handle: bytes) -> KVPool:
        return self._exports.open(handle)

    def _register_kernels(self, table: KernelTable) -> None:
        super()._register_kernels(table)
        if self.build == "hip":  # whose flash kernels take block tables and do not use them
            return
        flash = {"attention": attention.make(self._compute_capability())}
        kernels.register(table, self._supports_flash, flash, name="flash", priority=20)
        library = flashinfer_kernels.load()
        if library is not None:
            self._register_flashinfer(table, library)
        if "compiled" in asked.kernels():
            writer = Writer(self.module)
            found = {"kv_write": self._on_device(writer.kv_write)}
            index = torch.device(self.device).index

            def supports(**static: Any) -> list[str]:
                return [*self._supports(**static), *writer.shortfalls(index)]

            kernels.register(table, supports, found, name="compiled", priority=30)

    def _register_flashinfer(self, table: KernelTable, library: Any) -> None:
        capability = self._compute_capability()
        if capability < flashinfer_kernels.LEAST_CAPABILITY:
            raise UnavailableError(
                f"{asked.VARIABLE} asks for flashinfer, which needs compute "
                f"capability 8.0; {self.device} has {'.'.join(map(str, capability))}.",
                hint=f"Unset {asked.VARIABLE}.",
            )
        flash = not attention.shortfalls(capability)
        otherwise = attention.make(capability) if flash else device_kernels.attention
        plans = Plans(library, self.module, self._flashinfer_workspace)
        found = flashinfer_kernels.offers(
            library, plans, otherwise, self.module.is_current_stream_capturing
        )
        for operation, (kernel, limits) in found.items():
            table.register(
                operation,
                self._on_device(kernel),
                name="flashinfer",
                priority=30,
                supports=self._limited(limits),
            )

    def _flashinfer_workspace(self, device: torch.device) -> torch.Tensor:
        return self._allocate_charged(WORKSPACE, Place("device", str(device))).zero_()

    def _limited(self, limits: Callable[..., list[str]]) -> Callable[..., list[str]]:
        def supports(**static: Any) -> list[str]:
            return [*self._supports(**static), *limits(**static)]

        return supports

    def _supports_flash(self, dtype: DType | None = None, **static: Any) -> list[str]:
        return attention.shortfalls(self._compute_capability(), dtype, **static)

    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        found.compute_capability = ".".join(map(str, self._compute_capability()))
        found.versions[self.build] = str(getattr(torch.version, self.build))
        return found


class DCUProvider(CUDAProvider):
    """Every operation on a Hygon DCU, through a torch built for HIP.

    torch calls its devices ``cuda`` and its collectives ``nccl`` (RCCL).
    """

    name = "dcu"
    build = "hip"


def create_cuda_backend(config: Config = None) -> CUDAProvider:
    """A new provider on an NVIDIA GPU; see :class:`~sagellm_backend.config.ProviderConfig`."""
    return CUDAProvider(config)


def create_dcu_backend(config: Config = None) -> DCUProvider:
    """A new provider on a Hygon DCU."""
    return DCUProvider(config)
