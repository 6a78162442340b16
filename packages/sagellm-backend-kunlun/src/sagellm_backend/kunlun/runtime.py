"""What Paddle can do with a kind of place: XPUs, custom devices, the CPU.

A custom device is what a plug-in gives Paddle; the tests have one that is simulated in host memory.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import paddle
from paddle.base import core

from sagellm_backend.kunlun import places


class Runtime(ABC):
    """One kind of place. Every call is of Paddle's public interface, but where it says why not."""

    device_type: str
    has_streams = True
    simulated = True
    """Whether the place is no hardware of Kunlun's."""

    @abstractmethod
    def count(self) -> int:
        """How many devices Paddle sees."""

    @abstractmethod
    def place(self, index: int) -> Any:
        """Paddle's place of device ``index``."""

    @abstractmethod
    def index_of(self, place: Any) -> int | None:
        """The device behind a tensor's place; ``None`` for a place of another kind."""

    @abstractmethod
    def memory(self, index: int) -> tuple[int, int]:
        """(total, free) bytes of a device, every process counted as far as Paddle can tell."""

    @abstractmethod
    def set_stream(self, stream: Any, index: int) -> None:
        """Let kernels on device ``index`` run on ``stream``, of every thread."""

    def default_stream(self, index: int) -> Any:
        """The stream that kernels run on until another is set. May wait for the device."""
        return paddle.device.current_stream(self.place(index))

    def synchronize(self, index: int) -> None:
        """Wait for all work of a device."""
        paddle.device.synchronize(self.place(index))

    def empty_cache(self) -> None:
        """Give memory back that Paddle keeps for reuse."""


class XpuRuntime(Runtime):
    """Kunlun XPUs, by the XPU build of Paddle."""

    device_type = places.XPU
    simulated = False

    def count(self) -> int:
        return int(paddle.device.xpu.device_count())

    def place(self, index: int) -> Any:
        return paddle.XPUPlace(index)

    def index_of(self, place: Any) -> int | None:
        return int(place.xpu_device_id()) if place.is_xpu_place() else None

    def memory(self, index: int) -> tuple[int, int]:
        total = int(paddle.device.xpu.memory_total(index))
        return total, max(total - int(paddle.device.xpu.memory_used(index)), 0)

    def set_stream(self, stream: Any, index: int) -> None:
        # paddle.device.set_stream asks for the current stream first, which waits for the device.
        core._xpu_set_current_stream(stream.stream_base.idx)  # noqa: SLF001

    def empty_cache(self) -> None:
        paddle.device.xpu.empty_cache()


class CustomRuntime(Runtime):
    """Devices of a plug-in, by their type. Their memory is taken to be the host's, unless they say.

    Paddle counts what this process holds; it has no question for what a plug-in has left.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def count(self) -> int:
        return int(core.get_custom_device_count(self.device_type))

    def place(self, index: int) -> Any:
        return paddle.CustomPlace(self.device_type, index)

    def index_of(self, place: Any) -> int | None:
        if not place.is_custom_place() or place.custom_device_type() != self.device_type:
            return None
        return int(place.custom_device_id())

    def memory(self, index: int) -> tuple[int, int]:
        total, free = host_memory()
        held = int(core.device_memory_stat_current_value("Reserved", index))
        return total, max(min(free, total - held), 0)

    def set_stream(self, stream: Any, index: int) -> None:
        set_stream = core._set_current_custom_device_stream  # noqa: SLF001 - as above
        set_stream(self.device_type, index, stream.stream_base)

    def empty_cache(self) -> None:
        core.device_empty_cache()


class CpuRuntime(Runtime):
    """Paddle's CPU place: calls return when their work is done."""

    device_type = places.CPU
    has_streams = False

    def count(self) -> int:
        return 1

    def place(self, index: int) -> Any:
        return paddle.CPUPlace()

    def index_of(self, place: Any) -> int | None:
        return 0 if place.is_cpu_place() else None

    def memory(self, index: int) -> tuple[int, int]:
        return host_memory()

    def set_stream(self, stream: Any, index: int) -> None:
        raise NotImplementedError

    def synchronize(self, index: int) -> None:
        """Nothing is ever left to wait for."""


def runtime_of(device_type: str) -> Runtime:
    """The runtime of a device type."""
    if device_type == places.XPU:
        return XpuRuntime()
    return CpuRuntime() if device_type == places.CPU else CustomRuntime(device_type)


def host_memory() -> tuple[int, int]:
    """(total, free) bytes of the machine; (0, 0) where the system does not say."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        return page * total, page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0, 0
