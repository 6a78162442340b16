"""Starting Paddle and the driver: what is wrong is said once, by name, with the next step."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sagellm_backend.errors import BackendError, OutOfMemoryError, UnavailableError
from sagellm_backend.kunlun import places, stack
from sagellm_backend.spec import describe

if TYPE_CHECKING:
    from sagellm_backend.kunlun.provider import KunlunProvider
    from sagellm_backend.kunlun.runtime import Runtime

EXACT_PRODUCTS = "XPU_PADDLE_FC_LOCAL_INT16"
"""Paddle's variable, of a misleading name, that has XPUs accumulate products of fp32 and bf16 in
fp32. Without it they are computed in int16 or TF32, by release (phi/kernels/xpu/xpu_api_wrapper.h)."""

_DOCTOR = "`sagellm-backend doctor` shows what is installed and missing."

# What is said, what it means, and what to do.
_FAULTS = (
    (
        ("libxpurt", "libxpuapi", "libbkcl", "cannot open shared object file"),
        "the libraries of the XPU runtime are not where the loader looks",
        "Install the Kunlun driver and runtime that this Paddle was made for.",
    ),
    (
        ("undefined symbol",),
        "the XPU runtime is of another release than Paddle was made for",
        "Install the driver that the release notes of paddlepaddle-xpu name (5.0.21.26 or later).",
    ),
    (
        ("busy", "in use", "xpu_set_device", "noavailable", "resource temporarily unavailable"),
        "the device is busy or does not answer: another process or container may have it",
        "Stop that process (`xpu-smi` lists them), or choose another device.",
    ),
    (
        ("permission denied", "operation not permitted"),
        "this user may not use the device",
        "Join its group; in a container, pass --device /dev/xpuctrl too.",
    ),
    (
        ("not compiled with xpu", "use wrong place", "only supported in xpu"),
        "this Paddle was not built for XPUs",
        f"pip uninstall paddlepaddle paddlepaddle-xpu, then {stack.INSTALL}",
    ),
)
_NO_PLUGIN = "interface not found"
_NO_MEMORY = ("out of memory", "resourceexhausted", "no memory", "xpuerr_nomem")


def create_kunlun_backend(config: Any = None) -> KunlunProvider:
    """A new provider on an XPU, or on the places that :data:`places.VARIABLE` names.

    ``config`` as for :class:`~sagellm_backend.config.ProviderConfig`. Raises
    :class:`UnavailableError` with what is wrong and what to do, and :class:`OutOfMemoryError` where
    the device is full.
    """
    named = places.places(os.environ)
    load(named)
    provider = import_module("sagellm_backend.kunlun.provider")
    made: KunlunProvider = provider.KunlunProvider(config, places=named)
    return made


def load(named: tuple[str, ...] = ()) -> None:
    """Import Paddle, and leave the environment as it was. Raises :class:`UnavailableError`."""
    fault = stack.cpu_fault() if named else stack.xpu_fault()
    if fault:
        raise UnavailableError(f"Backend 'kunlun': {fault[0]}.", hint=fault[1])
    with _unchanged_environment(), _unchanged_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle warns of compilers that nobody asked it for
        try:
            import_module("paddle")
        except Exception as error:
            raise explain(error, "Backend 'kunlun' cannot import paddle") from error


def begin(runtime: Runtime, wanted: int) -> None:
    """See that ``runtime`` shows ``wanted`` devices (any number, where 0).

    Raises :class:`UnavailableError` for a Paddle that was not built for them, a driver that does
    not start, and one that shows no device.
    """
    kind = runtime.device_type
    if kind == places.XPU:
        _require_xpu_build()
        os.environ.setdefault(EXACT_PRODUCTS, "1")
    try:
        count = runtime.count()
    except Exception as error:
        if kind == places.XPU or _NO_PLUGIN not in str(error):
            raise explain(error, "Backend 'kunlun' cannot start its driver") from error
        count = 0
    if kind == places.XPU and not count:
        raise UnavailableError(
            "Backend 'kunlun' found no device: the driver shows none to Paddle.",
            hint="Look at `xpu-smi`, at XPU_VISIBLE_DEVICES, and at the devices of the container.",
        )
    if count < wanted:
        raise UnavailableError(
            f"Backend 'kunlun': {places.VARIABLE} names {wanted} places of type {kind}, and Paddle "
            f"has {count}.",
            hint="Set CUSTOM_DEVICE_ROOT to the folder of the plug-in before Paddle is imported.",
        )


def occupy(runtime: Runtime, index: int, device: str) -> None:
    """Make this process's context on a device and run one kernel there.

    Raises :class:`UnavailableError` where the device is busy or faulty, and
    :class:`OutOfMemoryError` where others have filled it.
    """
    paddle = import_module("paddle")
    try:
        made = paddle.ones([1], "float32", device=runtime.place(index))
        paddle.add(made, made)
        runtime.synchronize(index)
    except Exception as error:
        raise explain(error, f"Backend 'kunlun' cannot use {device}") from error


def explain(error: Exception, what: str) -> BackendError:
    """The error that names what is behind a failure of Paddle or the driver."""
    said, words = str(error).lower(), describe(error)
    if isinstance(error, MemoryError) or any(phrase in said for phrase in _NO_MEMORY):
        return OutOfMemoryError(
            f"{what}: the device is full, not even a context fits ({words}).",
            hint="Stop the process that holds its memory, or choose another device.",
        )
    for phrases, meaning, remedy in _FAULTS:
        if any(phrase in said for phrase in phrases):
            return UnavailableError(f"{what}: {meaning} ({words}).", hint=remedy)
    return UnavailableError(f"{what}: {words}", hint=_DOCTOR)


def _require_xpu_build() -> None:
    paddle = import_module("paddle")
    if not paddle.device.is_compiled_with_xpu():
        raise UnavailableError(
            "Backend 'kunlun': the Paddle that is imported was not built for XPUs, whatever "
            f"metadata say ({paddle.__version__}).",
            hint=f"pip uninstall paddlepaddle paddlepaddle-xpu, then {stack.INSTALL}",
        )


@contextmanager
def _unchanged_logging() -> Iterator[None]:
    """Put the root logger back, which the import of Paddle gives a handler and a level."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextmanager
def _unchanged_environment() -> Iterator[None]:
    """Put back what the import of Paddle changes: it has all later processes use one thread."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in {*os.environ, *before}:
            if name not in before:
                del os.environ[name]
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]
