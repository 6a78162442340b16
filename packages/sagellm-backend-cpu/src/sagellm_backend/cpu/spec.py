"""The spec of the ``cpu`` backend: what the processor is, and whether torch is installed."""

from __future__ import annotations

from pathlib import Path

from sagellm_backend import frameworks
from sagellm_backend.cpu.machine import processor
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

OLDEST_TORCH = (2, 4)

_ROOT = Path("/")
_INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def probe(root: Path = _ROOT) -> Probe:
    """The processor, with the memory that this process may use. ``root`` stands for ``/``."""
    device = processor(root)
    torch = frameworks.torch_build()
    if torch is None:
        return Probe.broken("torch is not installed", _INSTALL, (device,))
    if torch.release and torch.release < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        reason = f"torch {torch.version} is older than {needed}"
        return Probe.broken(reason, f"pip install 'torch>={needed}'", (device,))
    return Probe.available(device)


SPEC = BackendSpec(
    name="cpu",
    device_type="cpu",
    priority=PRIORITIES["cpu"],
    array_framework="torch",
    probe=probe,
    factory="sagellm_backend.cpu.provider:create_cpu_backend",
    contract=(1, 0),
    package="sagellm-backend-cpu",
)
