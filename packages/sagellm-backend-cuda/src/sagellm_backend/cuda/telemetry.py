"""What a card measures of itself, through NVML (AMD SMI for torch built for HIP).

torch reads it by bindings of its own choice: nvidia-ml-py, the extra ``[nvml]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sagellm_backend.errors import CapabilityError


class Telemetry(NamedTuple):
    """One reading; ``None`` for what this card does not measure, as a slice by MIG does not."""

    temperature_c: int | None
    power_w: float | None
    utilization_percent: int | None
    """The share of the last sample period in which a kernel ran."""
    memory_traffic_percent: int | None
    """The share of it in which memory was read or written."""
    clock_mhz: int | None


def read(module: Any, device: str, provider: str) -> Telemetry:
    """A reading of one device; takes some milliseconds and waits for no work.

    Raises :class:`CapabilityError` where the bindings are not installed.
    """
    where = torch.device(device)
    power = _ask(module.power_draw, where, provider)
    return Telemetry(
        _ask(module.temperature, where, provider),
        None if power is None else power / 1000,
        _ask(module.utilization, where, provider),
        _ask(module.memory_usage, where, provider),
        _ask(module.clock_rate, where, provider),
    )


def _ask(call: Any, device: torch.device, provider: str) -> int | None:
    try:
        return int(call(device))
    except ModuleNotFoundError as error:
        raise CapabilityError(
            "telemetry",
            provider,
            f"{error}",
            hint="pip install 'sagellm-backend-cuda[nvml]'; amdsmi comes with ROCm and DTK.",
        ) from error
    except Exception:  # noqa: BLE001 - each binding has errors of its own for "not supported"
        return None
