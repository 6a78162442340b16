"""The specs of ``cuda`` and ``dcu``, and the probes that tell their hardware from look-alikes.

MUSA, ROCm and Kunlun's xpytorch all present themselves as ``torch.cuda``; device nodes and metadata
say what they really are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sagellm_backend import frameworks
from sagellm_backend.cuda import drivers
from sagellm_backend.cuda.inventory import hygon_cards, nvidia_cards
from sagellm_backend.devices import Sighting, sighting_of, visible_devices
from sagellm_backend.spec import PRIORITIES, BackendSpec, Probe

POSERS = ("torch_xmlir", "kunlun_ops")
"""Modules in whose presence ``torch.cuda`` means Kunlun XPUs."""

_ROOT = Path("/")
_WHEELS = "https://download.pytorch.org/whl/cu128"
_ON_CPU = "Set SAGELLM_BACKEND=cpu to run on the CPU."


def probe_cuda(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> Probe:
    """NVIDIA cards and a torch built for CUDA. ``root`` stands for ``/`` in tests."""
    seen = sighting_of("cuda", root)
    if seen is None:
        return _poser(root) or _no_device(root)
    selection = environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible_devices(nvidia_cards(root, seen), selection)
    if not devices:
        return _hidden("CUDA_VISIBLE_DEVICES", selection, seen)
    fault = _denied(root, seen) or _cuda_stack_fault(root)
    return Probe.broken(fault[0], fault[1], devices) if fault else Probe.available(*devices)


def probe_dcu(root: Path = _ROOT, environ: Mapping[str, str] = os.environ) -> Probe:
    """Hygon DCUs and a torch built for HIP. ``root`` stands for ``/`` in tests."""
    seen = sighting_of("dcu", root)
    if seen is None:
        return Probe.absent(
            "no Hygon DCU: /dev/kfd and /opt/hyhal do not both exist",
            "Where there should be one, install Hygon's driver and DTK.",
        )
    devices = hygon_cards(root, seen)
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        devices = visible_devices(devices, environ.get(variable))
        if not devices:
            return _hidden(variable, environ.get(variable), seen)
    fault = _denied(root, seen) or _hip_stack_fault()
    return Probe.broken(fault[0], fault[1], devices) if fault else Probe.available(*devices)


def _poser(root: Path) -> Probe | None:
    """What stands behind ``torch.cuda`` where no NVIDIA card does."""
    if sighting_of("dcu", root):
        return Probe.absent("no NVIDIA device, but a Hygon DCU", "Use backend 'dcu'.")
    if sighting_of("kunlun", root) and _xpytorch():
        return Probe.absent(
            f"no NVIDIA device: {_xpytorch()} presents a Kunlun XPU as torch.cuda",
            "Use backend 'kunlun', with paddlepaddle-xpu.",
        )
    if (root / "dev/kfd").exists():
        return Probe.unsupported(
            "an AMD GPU (/dev/kfd), which torch for ROCm presents as torch.cuda, is not served",
            _ON_CPU,
        )
    if any((root / "dev").glob("mtgpu*")):
        return Probe.unsupported(
            "a Moore Threads GPU (/dev/mtgpu*), which MUSA presents as torch.cuda, is not served",
            _ON_CPU,
        )
    return None


def _no_device(root: Path) -> Probe:
    """Why there is no ``/dev/nvidia*``: no card, no driver, or a container without its devices."""
    card, driver = drivers.pci_card(root), drivers.installed(root)
    if card and not driver:
        return Probe.broken(
            f"an NVIDIA card at PCI {card} has no driver: /dev/nvidia0 does not exist",
            "Install and load the NVIDIA driver. " + _ON_CPU,
        )
    if driver:
        return Probe.absent(
            f"NVIDIA driver {driver} is loaded and no card is given to this container",
            "Start the container with --gpus all.",
        )
    return Probe.absent(
        "no NVIDIA device: /dev/nvidia0 does not exist",
        "Where there should be one, install the NVIDIA driver; in a container, start it with "
        "--gpus all.",
    )


def _cuda_stack_fault(root: Path) -> tuple[str, str] | None:
    torch = frameworks.torch_build()
    if torch is None:
        return "torch is not installed", "pip install torch"
    if torch.cuda is None:
        return (
            f"{torch.words} cannot drive an NVIDIA GPU",
            f"pip install --force-reinstall torch --index-url {_WHEELS}",
        )
    driver = drivers.installed(root)
    least = drivers.too_old(driver, torch.cuda, root)
    if least:
        return (
            f"NVIDIA driver {driver} is too old for {torch.words}, which needs {least}",
            f"Install driver {least} or later, or a torch built for an older CUDA.",
        )
    if _xpytorch():
        return (
            f"{_xpytorch()} makes torch.cuda mean Kunlun XPUs in this environment",
            "Use an environment with NVIDIA's build of torch and without xpytorch.",
        )
    return None


def _hip_stack_fault() -> tuple[str, str] | None:
    torch = frameworks.torch_build()
    remedy = "Install the torch that comes with Hygon's DTK."
    if torch is None:
        return "torch is not installed", remedy
    if torch.hip is None:
        return f"{torch.words} cannot drive a DCU", remedy
    return None


def _xpytorch() -> str | None:
    return next((module for module in POSERS if frameworks.is_installed(module)), None)


def _hidden(variable: str, value: str | None, seen: Sighting) -> Probe:
    return Probe.absent(
        f"{variable}={value!r} hides {seen.evidence}", f"Unset {variable} or list devices in it."
    )


def _denied(root: Path, seen: Sighting) -> tuple[str, str] | None:
    node = seen.denied(root)
    if node is None:
        return None
    return f"this user may not open {node}", "Join the group that owns it, or mount it writable."


SPEC = BackendSpec(
    name="cuda",
    device_type="cuda",
    priority=PRIORITIES["cuda"],
    array_framework="torch",
    probe=probe_cuda,
    factory="sagellm_backend.cuda.provider:create_cuda_backend",
    aliases=("nvidia", "pytorch-cuda"),
    contract=(1, 0),
    package="sagellm-backend-cuda",
)

DCU_SPEC = BackendSpec(
    name="dcu",
    device_type="cuda",
    priority=PRIORITIES["dcu"],
    array_framework="torch",
    probe=probe_dcu,
    factory="sagellm_backend.cuda.provider:create_dcu_backend",
    aliases=("hygon",),
    contract=(1, 0),
    package="sagellm-backend-cuda",
)
