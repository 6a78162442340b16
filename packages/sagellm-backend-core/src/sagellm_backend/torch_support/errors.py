"""The one way in which torch's failures become ours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sagellm_backend.errors import BackendError, OutOfMemoryError, UnavailableError

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

# What CUDA, HIP and CANN say when nothing of this process can use the device any more.
_LOST = (
    "illegal memory access",
    "illegal address",
    "misaligned address",
    "device-side assert",
    "launch failure",
    "launch timed out",
    "uncorrectable ecc",
    "uncorrectable nvlink",
    "illegal instruction",
    "invalid program counter",
    "hardware stack error",
    "global/shared address space",
    "context is destroyed",
    "terminated by the server",
    "hardware error",
    "hardware exception",
    "device is lost",
    "gpu is lost",
    "fallen off the bus",
    "device has been removed",
    "uce error",
    "multi bit ecc error",
    "suspect mem error",
    "suspect remote error",
    "hccs link error",
    "force stop",
)
# Numbers of CANN's runtime (acl/error_codes/rt_error_codes.h) that say so: aborted tasks, a lost
# heartbeat, DMA, exceptions and timeouts of the cores, memory, links, the driver itself.
_LOST_CODE = re.compile(
    r"error code(?: is)?:? ?(107022|507001|507010|50701[3-8]|50703[456]|50704[234589]|507050|"
    r"50705[2-7]|507899|507901)"
)
_FULL_CODE = re.compile(r"error code(?: is)?:? ?(207001|207018)")
_RESTART = (
    "The device is lost to this process: end it and start another. `dmesg` shows the driver's "
    "report; for a fault of a kernel, run again with {}."
)
_SWITCHES = {"cuda": "CUDA_LAUNCH_BLOCKING", "npu": "ASCEND_LAUNCH_BLOCKING"}
"""By device type, the variable that makes calls wait, so that each raises its own failure."""


@contextmanager
def check(operation: str, device: str, requested: int = 0) -> Iterator[None]:
    """Run driver calls; a failure of torch inside becomes an error that names ``operation``."""
    try:
        yield
    except BackendError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(operation, device, requested, error) from error
    except RuntimeError as error:
        raise explain(operation, device, error, requested) from error


def explain(operation: str, device: str, error: RuntimeError, requested: int = 0) -> BackendError:
    """What a failure of driver calls means: too little memory, a lost device, or another fault."""
    said = str(error).lower()
    if _FULL_CODE.search(said) or any(phrase in said for phrase in _NO_MEMORY):
        return _out_of_memory(operation, device, requested, error)
    return UnavailableError(f"{operation} failed on {device}: {error}", hint=remedy(error, device))


def remedy(error: BaseException, device: str = "") -> str | None:
    """What to do where the device is lost to this process, or a failure may be an earlier call's.

    ``None`` where nothing is known.
    """
    said, switch = str(error).lower(), blocking_switch(device)
    if _LOST_CODE.search(said) or any(phrase in said for phrase in _LOST):
        return _RESTART.format(switch or f"{_SWITCHES['cuda']}=1 or its like")
    if switch is None or is_blocking(device):
        return None
    return f"It may be the failure of an earlier call: with {switch} that call raises it itself."


def blocking_switch(device: str) -> str | None:
    """The setting under which calls on ``device`` wait for their work; ``None`` without one."""
    name = _SWITCHES.get(device.partition(":")[0])
    return f"{name}=1" if name else None


def is_blocking(device: str) -> bool:
    """Whether this process was started with that setting."""
    name = _SWITCHES.get(device.partition(":")[0], "")
    return os.environ.get(name, "0") not in ("", "0")


def _out_of_memory(
    operation: str, device: str, requested: int, error: BaseException
) -> OutOfMemoryError:
    first_line = str(error).partition("\n")[0]
    return OutOfMemoryError(
        f"{operation} found no memory on {device} for {requested:,} bytes: {first_line}",
        hint="Free arrays or pools, call clear_cache(), or ask for fewer blocks.",
        requested=requested,
    )
