"""Starting the driver: what is wrong is said once, by name, with the next step.

The phrases are those of torch (c10/cuda/CUDAFunctions.cpp, torch/cuda/__init__.py) and of the CUDA
runtime. HIP's runtime says the same with other prefixes.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from sagellm_backend import frameworks
from sagellm_backend.cuda.spec import POSERS
from sagellm_backend.errors import BackendError, OutOfMemoryError, UnavailableError
from sagellm_backend.torch_support.errors import remedy

VARIABLES = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "hip": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
}
"""Which variables may hide devices, by the kind of torch."""

_ELSEWHERE = {"cuda": "dcu", "hip": "cuda"}
_POSERS = {
    "MTT": "a Moore Threads GPU that MUSA presents as torch.cuda",
    "Kunlun": "a Kunlun XPU that xpytorch presents as torch.cuda",
    "R200": "a Kunlun XPU that xpytorch presents as torch.cuda",
    "P800": "a Kunlun XPU that xpytorch presents as torch.cuda",
}

_FAILURES = (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError)

_NOTHING = ("no cuda gpus are available", "no cuda-capable device is detected", "no devices")

# What torch or the driver says, what that means, and what to do.
_FAULTS = (
    (
        "found no nvidia driver",
        "there is no NVIDIA driver",
        "Install the NVIDIA driver; in a container, start it with --gpus all.",
    ),
    (
        "driver on your system is too old",
        "the driver is too old for this torch",
        "Update the driver, or install a torch built for an older CUDA.",
    ),
    (
        "insufficient for cuda runtime",
        "the driver is older than this torch's CUDA",
        "Update the driver, or install a torch built for an older CUDA.",
    ),
    (
        "not supported in the installed cuda driver",
        "the driver lacks a call that this torch makes",
        "Update the driver, or install a torch built for an older CUDA.",
    ),
    (
        "unsupported toolchain",
        "the driver cannot compile this torch's code, which is newer",
        "Update the driver, or install a torch built for an older CUDA.",
    ),
    (
        "stub library",
        "a stub of libcuda was loaded in place of the driver's library",
        "Take CUDA's lib64/stubs out of LD_LIBRARY_PATH.",
    ),
    (
        "valid grid license",
        "this virtual GPU has no licence",
        "Look at `nvidia-smi -q`, and at the licence server of the hypervisor.",
    ),
    (
        "mps client failed to connect",
        "the MPS daemon does not answer",
        "Start nvidia-cuda-mps-control, or unset CUDA_MPS_PIPE_DIRECTORY.",
    ),
    (
        "mps server is not ready",
        "the MPS server is starting, or recovers from the fault of another client",
        "Try again; if it lasts, restart nvidia-cuda-mps-control.",
    ),
    (
        "resources required to",
        "MPS has no room for another client",
        "Stop another client of the MPS daemon, or choose another device.",
    ),
    (
        "initialization error",
        "the driver could not be started in this process, perhaps after a fork",
        "Start workers by multiprocessing's 'spawn' method.",
    ),
    (
        "unsupported display driver / cuda driver combination",
        "the driver's library and its kernel module are of different versions",
        "Restart the machine, or the container, after the driver was updated.",
    ),
    (
        "forward compatibility was attempted on non supported",
        "this card cannot run on cuda-compat's newer driver library",
        "Remove cuda-compat from LD_LIBRARY_PATH, or update the driver.",
    ),
    (
        "system not yet initialized",
        "the NVSwitch fabric is not up",
        "Start nvidia-fabricmanager of the driver's version.",
    ),
    (
        "busy or unavailable",
        "the device is busy: another process has it for itself, or MIG gave it away",
        "Stop that process, choose another device, or `nvidia-smi -c DEFAULT` for shared use.",
    ),
    (
        "no kernel image is available",
        "this torch holds no code for the card's generation",
        "Install a torch that was built for it; `torch.cuda.get_arch_list()` names what it has.",
    ),
    (
        "invalid device function",
        "this torch holds no code for the card's generation",
        "Install the torch that the vendor of the card built for it.",
    ),
    (
        "forked subprocess",
        "this process was forked from one that had started the driver",
        "Start workers by multiprocessing's 'spawn' method.",
    ),
    (
        "unknown error",
        "the driver could not be started",
        "Load nvidia-uvm (`modprobe nvidia-uvm`) or restart the machine; variables such as "
        "CUDA_VISIBLE_DEVICES must be set before the process starts.",
    ),
)


def begin(module: Any, kind: str, name: str) -> None:
    """Start the driver behind ``module`` for a torch built for ``kind`` (``cuda`` or ``hip``).

    Raises :class:`UnavailableError` for a torch that was built for something else or that other
    hardware has taken over, and for a driver that does not start or shows no device.
    """
    _require_build(kind, name)
    try:
        module.init()
        count = int(module.device_count())
    except _FAILURES as error:
        raise fault(error, kind, f"Backend {name!r} cannot start its driver") from error
    if not count:
        raise fault(RuntimeError("no devices"), kind, f"Backend {name!r} found no device")


def occupy(module: Any, device: str, kind: str, name: str) -> None:
    """Make this process's context on ``device`` and run one kernel there.

    Raises :class:`UnavailableError` where the device is busy, is no device of this kind, or torch
    has no code for it, and :class:`OutOfMemoryError` where others have filled it.
    """
    _refuse_poser(module.get_device_name(torch.device(device)), device, name)
    try:
        run_kernel(device)
        module.synchronize(torch.device(device))
    except _FAILURES as error:
        raise fault(error, kind, f"Backend {name!r} cannot use {device}") from error


def run_kernel(device: str) -> None:
    """The least work that needs a context, memory and a kernel."""
    torch.ones(1, device=device)


def fault(error: Exception, kind: str, what: str) -> BackendError:
    """The error that names what is behind a failure of torch or the driver."""
    text = str(error).partition("\n")[0]
    lowered = text.lower()
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in lowered:
        return OutOfMemoryError(
            f"{what}: the device is full, not even a context fits ({text}).",
            hint="Stop the process that holds its memory, or choose another device.",
        )
    if any(phrase in lowered for phrase in _NOTHING):
        return _hidden(kind, what)
    for phrase, meaning, step in _FAULTS:
        if phrase in lowered:
            return UnavailableError(f"{what}: {meaning} ({text}).", hint=step)
    hint = remedy(error) or "`sagellm-backend doctor` shows what is installed and missing."
    return UnavailableError(f"{what}: {text}", hint=hint)


def _require_build(kind: str, name: str) -> None:
    built = {"cuda": torch.version.cuda, "hip": getattr(torch.version, "hip", None)}
    if built["hip"]:
        built["cuda"] = None
    if built[kind]:
        taken = next((word for word in POSERS if frameworks.is_installed(word)), None)
        if taken is None:
            return
        raise UnavailableError(
            f"Backend {name!r}: {taken} makes torch.cuda mean other hardware in this environment.",
            hint=f"Use an environment without {taken}.",
        )
    words = frameworks.TorchBuild(torch.__version__, built["cuda"], built["hip"]).words
    other = _ELSEWHERE[kind]
    belongs = f"It serves backend {other!r}. " if any(built.values()) else ""
    raise UnavailableError(
        f"Backend {name!r} needs a torch built for {kind.upper()}; here is {words}.",
        hint=f"{belongs}Install the torch that the vendor of the card offers.",
    )


def _refuse_poser(device_name: str, device: str, name: str) -> None:
    for word, meaning in _POSERS.items():
        if device_name.startswith(word):
            raise UnavailableError(
                f"Backend {name!r} does not serve {device}: it is {device_name}, {meaning}.",
                hint="Use the backend of that hardware, or SAGELLM_BACKEND=cpu.",
            )


def _hidden(kind: str, what: str) -> UnavailableError:
    for variable in VARIABLES[kind]:
        value = os.environ.get(variable)
        if value is not None:
            return UnavailableError(
                f"{what}: {variable}={value!r} hides every device.",
                hint=f"Unset {variable} or list devices in it, before the process starts.",
            )
    return UnavailableError(
        f"{what}: the driver shows none.",
        hint="Look at `nvidia-smi` or `hy-smi`; in a container, give it the devices.",
    )
