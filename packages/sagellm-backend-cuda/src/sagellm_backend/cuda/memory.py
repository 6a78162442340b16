"""Host memory registered with the CUDA runtime (or HIP's, which torch gives the same names)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

PORTABLE = 1
"""``cudaHostRegisterPortable``: pinned for every device of the process."""


class RuntimeRegistrar:
    """``cudaHostRegister`` through ``torch.cuda.cudart()``; the driver is started by a context."""

    def register(self, address: int, nbytes: int) -> None:
        """Lock the pages of a range; raises :class:`RuntimeError` with the runtime's words."""
        runtime = torch.cuda.cudart()
        _require(runtime, "cudaHostRegister", runtime.cudaHostRegister(address, nbytes, PORTABLE))

    def unregister(self, address: int) -> None:
        """Undo :meth:`register` of the range that starts there."""
        runtime = torch.cuda.cudart()
        _require(runtime, "cudaHostUnregister", runtime.cudaHostUnregister(address))


def _require(runtime: Any, call: str, result: Any) -> None:
    if int(result) == 0:
        return
    # The runtime repeats its last error at the next launch, to whoever makes it.
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")
    raise RuntimeError(f"{call}: {runtime.cudaGetErrorString(result)}")
