"""The one way in which torch's failures become ours."""

from __future__ import annotations

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
    "hardware error",
    "hardware exception",
    "device is lost",
    "gpu is lost",
    "fallen off the bus",
    "device has been removed",
)
_RESTART = (
    "The device is lost to this process: end it and start another. `dmesg` shows the driver's "
    "report; for a fault of a kernel, run again with CUDA_LAUNCH_BLOCKING=1 or its like."
)


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
        said = str(error).lower()
        if any(phrase in said for phrase in _NO_MEMORY):
            raise _out_of_memory(operation, device, requested, error) from error
        message = f"{operation} failed on {device}: {error}"
        raise UnavailableError(message, hint=remedy(error)) from error


def remedy(error: BaseException) -> str | None:
    """What to do where a failure means that the device is lost to this process; else ``None``."""
    said = str(error).lower()
    return _RESTART if any(phrase in said for phrase in _LOST) else None


def _out_of_memory(
    operation: str, device: str, requested: int, error: BaseException
) -> OutOfMemoryError:
    first_line = str(error).partition("\n")[0]
    return OutOfMemoryError(
        f"{operation} found no memory on {device} for {requested:,} bytes: {first_line}",
        hint="Free arrays or pools, call clear_cache(), or ask for fewer blocks.",
        requested=requested,
    )
