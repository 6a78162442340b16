"""``torch.simdev``: what torch.cuda, torch.npu and their like offer, as far as simdev has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from simdev import graphs

CUDAGraph = graphs.CUDAGraph
graph = graphs.graph
graph_pool_handle = graphs.graph_pool_handle
memory_snapshot = graphs.memory_snapshot
Event = torch.Event
Where = torch.device | str | int | None


class Stream(torch.Stream):
    """A stream of one device."""

    def __new__(cls, device: Where = None, priority: int = 0) -> Any:
        return super().__new__(cls, device=_device(device), priority=priority)


def is_available() -> bool:
    """Whether there is a device: always."""
    return True


def is_initialized() -> bool:
    """Whether the device was started: it needs no start."""
    return True


def device_count() -> int:
    """How many devices are simulated."""
    return int(torch.ops.simdev.device_count())


def current_device() -> int:
    """The index of this thread's device."""
    return torch.accelerator.current_device_index()


def set_device(device: Where) -> None:
    """Make ``device`` this thread's."""
    torch.accelerator.set_device_index(_device(device).index)


def get_device_name(device: Where = None) -> str:
    """What the device is called."""
    return f"simulated torch device {_device(device).index}"


def current_stream(device: Where = None) -> torch.Stream:
    """The stream that this thread's work on ``device`` goes to."""
    return torch.accelerator.current_stream(_device(device))


@contextmanager
def stream(entered: torch.Stream) -> Iterator[None]:
    """Send this thread's work to a stream, and its device."""
    before = current_device(), current_stream(entered.device)
    torch.accelerator.set_stream(entered)
    try:
        yield
    finally:
        torch.accelerator.set_stream(before[1])
        set_device(before[0])


def synchronize(device: Where = None) -> None:
    """Wait for all work of a device."""
    torch.accelerator.synchronize(_device(device))


def memory_allocated(device: Where = None) -> int:
    """Bytes of live tensors of this process."""
    return int(torch.ops.simdev.memory(_device(device).index)[0])


def memory_reserved(device: Where = None) -> int:
    """Bytes of live tensors, and what is kept for reuse."""
    return int(torch.ops.simdev.memory(_device(device).index)[1])


def mem_get_info(device: Where = None) -> tuple[int, int]:
    """(free, total) bytes of the device."""
    _, reserved, total = torch.ops.simdev.memory(_device(device).index)
    return int(total - reserved), int(total)


def empty_cache() -> None:
    """Give back what is kept for reuse, on all devices; waits for their work."""
    torch.ops.simdev.empty_cache()


class Registrar:
    """Lets copies use host memory that exists already."""

    def register(self, address: int, nbytes: int) -> None:
        """Take a range in; raises RuntimeError where part of it is in."""
        torch.ops.simdev.host_register(address, nbytes)

    def unregister(self, address: int) -> None:
        """Take the range that starts there out again."""
        torch.ops.simdev.host_unregister(address)


def sleep(milliseconds: int) -> None:
    """Keep the current stream of the current device busy."""
    torch.ops.simdev.sleep(milliseconds)


def _is_in_bad_fork() -> bool:
    return False


def manual_seed_all(seed: int) -> None:
    """Nothing: random numbers are drawn on the host."""


def _device(device: Where) -> torch.device:
    if isinstance(device, int):
        return torch.device("simdev", device)
    found = torch.device("simdev" if device is None else device)
    return found if ":" in str(found) else torch.device("simdev", current_device())
