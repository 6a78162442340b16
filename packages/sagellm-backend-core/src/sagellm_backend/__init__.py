"""sagellm-backend: one interface to the hardware under an LLM inference engine.

Names are loaded on first use, so importing the package costs next to nothing and never imports a
framework. Hardware packages add their own sub-packages to this one.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import Any

from sagellm_backend_installation import require_whole

require_whole()
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"

_HOMES = {
    "sagellm_backend.attention": ("AttentionMetadata",),
    "sagellm_backend.base": ("BackendProvider",),
    "sagellm_backend.capability": (
        "CONTRACT_VERSION",
        "CapabilityDescriptor",
        "Feature",
        "KVCapability",
        "KernelKind",
        "Limits",
        "PROTOCOL_VERSION",
        "Requirements",
    ),
    "sagellm_backend.collectives": ("Communicator", "ReduceOp"),
    "sagellm_backend.devices": ("DeviceInfo", "format_device_str", "parse_device_str"),
    "sagellm_backend.discovery": ("DiscoveryReport", "discover"),
    "sagellm_backend.dtypes": ("DType",),
    "sagellm_backend.errors": ("BackendError", "CapabilityError", "ErrorCode"),
    "sagellm_backend.graphs": ("Graph",),
    "sagellm_backend.kv": ("BlockAllocator", "KVBlock", "KVLayout", "KVPool", "Transfer"),
    "sagellm_backend.memory": ("MemoryStats",),
    "sagellm_backend.registry": (
        "get_provider",
        "is_provider_available",
        "list_providers",
        "register_provider",
    ),
    "sagellm_backend.spec": ("BackendSpec", "Probe", "ProbeState"),
    "sagellm_backend.streams": ("Event", "Stream"),
    "sagellm_backend.cpu.provider": ("CPUBackendProvider", "create_cpu_backend"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        package = ".".join(module.split(".")[:2])
        if error.name not in (package, module):
            raise
        from sagellm_backend.errors import PackageMissingError

        distribution = package.replace("sagellm_backend.", "sagellm-backend-")
        raise PackageMissingError(
            f"{name} lives in {distribution}, which is not installed.",
            hint=f"pip install {distribution}",
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
