"""Starting torch_npu and the driver: what is wrong is said once, by name, with the next step.

Nothing here imports torch before it is sure that torch will not try torch_npu by itself: where that
fails, ``import torch`` does, and cannot be repeated in the process.

Error numbers are those of the ACL runtime (acl/error_codes/rt_error_codes.h).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sagellm_backend.ascend import stack
from sagellm_backend.ascend.soc import Family, family_of
from sagellm_backend.errors import BackendError, OutOfMemoryError, UnavailableError
from sagellm_backend.spec import describe

if TYPE_CHECKING:
    from sagellm_backend.ascend.provider import AscendProvider

_DOCTOR = "`sagellm-backend doctor` shows what is installed and missing."
_CANN_FITS = "Install the CANN release that this torch_npu was made for, and its driver."

# What is said, what it means, and what to do.
_FAULTS = (
    (
        ("libatb.so",),
        "NNAL is not where the loader looks",
        "source /usr/local/Ascend/nnal/atb/set_env.sh",
    ),
    (
        ("cannot open shared object file",),
        "CANN's libraries are not where the loader looks",
        stack.SET_ENV,
    ),
    (
        ("source set_env.sh",),
        "CANN is not set up as a whole",
        stack.SET_ENV,
    ),
    (("undefined symbol",), "torch_npu was made for another CANN", _CANN_FITS),
    (
        ("two accelerators cannot be used",),
        "torch was built for another accelerator",
        f"Install torch from {stack.CPU_TORCH}.",
    ),
    (
        ("only a single torch_library", "failed to load the backend extension"),
        "an earlier `import torch` has failed in this process",
        f"Mend what it said and start again, or start with {stack.AUTOLOAD}=0.",
    ),
    (
        ("507033", "507046"),
        "the device is busy or does not answer: another process or container may have it",
        "Stop that process (`npu-smi info` lists them), or choose another device.",
    ),
    (
        ("207006",),
        "this user may not use the device",
        "Join the group HwHiAiUser; in a container, pass --device /dev/davinci_manager too.",
    ),
    (
        ("207004", "107001"),
        "the driver has no such device",
        f"Look at `npu-smi info` and at {stack.SELECTION}.",
    ),
    (
        ("507008", "207000"),
        "CANN does not know this chip",
        _CANN_FITS,
    ),
    (
        ("507899", "507010"),
        "the driver reports a fault of its own",
        "Look at `npu-smi info -t health -i 0` and the driver's log; restart the device.",
    ),
)
_NO_MEMORY = ("out of memory", "207001", "207018")


def create_ascend_backend(config: Any = None) -> AscendProvider:
    """A new provider on an NPU; see :class:`~sagellm_backend.config.ProviderConfig`.

    Raises :class:`UnavailableError` with what is wrong and what to do, and
    :class:`OutOfMemoryError` where the device is full.
    """
    load()
    provider = import_module("sagellm_backend.ascend.provider")
    made: AscendProvider = provider.create(config)
    return made


def load() -> None:
    """Import torch and torch_npu, and leave the environment as it was.

    Raises :class:`UnavailableError`. While it runs, ``TORCH_DEVICE_BACKEND_AUTOLOAD`` is 0 for the
    whole process.
    """
    fault = stack.torch_fault()
    if fault:
        raise UnavailableError(f"Backend 'ascend': {fault[0]}.", hint=fault[1])
    with _without_autoload():
        _import("torch")
        _import("torch_npu")


def begin(module: Any) -> Family:
    """Start the driver behind ``module`` (``torch.npu``); the family of its chips.

    Raises :class:`UnavailableError` for a driver that does not start or shows no device.
    """
    try:
        count = int(module.device_count())
        family = family_of(int(module.get_soc_version()), _name(module)) if count else None
    except (RuntimeError, AssertionError) as error:
        raise explain(error, "Backend 'ascend' cannot start its driver") from error
    if family is None:
        raise _hidden()
    return family


def occupy(module: Any, device: str) -> None:
    """Make this process's context on ``device`` and run one kernel there.

    Raises :class:`UnavailableError` where the device is busy or faulty, and
    :class:`OutOfMemoryError` where others have filled it.
    """
    torch = import_module("torch")
    try:
        torch.ones(1, device=device)
        module.synchronize(torch.device(device))
    except RuntimeError as error:
        raise explain(error, f"Backend 'ascend' cannot use {device}") from error


def explain(error: Exception, what: str) -> BackendError:
    """The error that names what is behind a failure of torch_npu, CANN or the driver."""
    said = " ".join(str(item) for item in _chain(error)).lower()
    words = describe(error)
    if any(phrase in said for phrase in _NO_MEMORY):
        return OutOfMemoryError(
            f"{what}: the device is full, not even a context fits ({words}).",
            hint="Stop the process that holds its memory, or choose another device.",
        )
    for phrases, meaning, remedy in _FAULTS:
        if any(phrase in said for phrase in phrases):
            return UnavailableError(f"{what}: {meaning} ({words}).", hint=remedy)
    return UnavailableError(f"{what}: {words}", hint=_DOCTOR)


def _import(module: str) -> None:
    try:
        import_module(module)
    except Exception as error:
        raise explain(error, f"Backend 'ascend' cannot import {module}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _name(module: Any) -> str:
    return str(module.get_device_name(0))


def _hidden() -> UnavailableError:
    value = os.environ.get(stack.SELECTION)
    if value is None:
        return UnavailableError(
            "Backend 'ascend' found no device: the driver shows none.",
            hint="Look at `npu-smi info`; in a container, give it the devices.",
        )
    return UnavailableError(
        f"Backend 'ascend' found no device: {stack.SELECTION}={value!r} hides every device.",
        hint=f"Unset {stack.SELECTION} or list devices in it, before the process starts.",
    )


@contextmanager
def _without_autoload() -> Iterator[None]:
    before = os.environ.get(stack.AUTOLOAD)
    os.environ[stack.AUTOLOAD] = "0"
    try:
        yield
    finally:
        os.environ.pop(stack.AUTOLOAD, None)
        if before is not None:
            os.environ[stack.AUTOLOAD] = before
