"""Kernels: every operation of the table, computed by its float64 reference on a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.hooks import HOST
from sagellm_backend.ops import OPERATIONS, Operation
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.ops.shapes import infer
from sagellm_backend.reference.arrays import DeviceArray

if TYPE_CHECKING:
    from sagellm_backend.reference.provider import ReferenceProvider


def register(table: KernelTable, provider: ReferenceProvider) -> None:
    """Offer every operation, in every dtype that it is defined for."""
    for operation in OPERATIONS.values():
        kernel = make_kernel(operation, provider)
        table.register(operation.name, kernel, name="numpy", supports=_supports)


def _supports(dtype: DType | None = None, **_: Any) -> list[str]:
    if dtype is None or dtype in FLOATING:
        return []
    return [f"{dtype.value} is not computed in, only {', '.join(item.value for item in FLOATING)}"]


def make_kernel(operation: Operation, provider: ReferenceProvider) -> Callable[..., Any]:
    """A kernel as a device has it: it refuses bad arguments, queues the work and returns.

    Outputs are allocated at the call, where memory may run out. Data are read when the work runs;
    what is wrong with them (an id outside of its table) is a failure of the stream.
    """

    def kernel(*args: Any, **kwargs: Any) -> Any:
        arguments = operation.bind(args, kwargs)
        bindings = operation.check(arguments)
        device = _device(operation, arguments)
        dtype = operation.dtype(arguments)
        outputs = [
            provider.empty(
                infer(arg.spec, bindings), dtype if arg.dtype == "T" else arg.dtypes[0], device
            )
            for arg in operation.returns
        ]
        written = [*outputs, *(arguments[name] for name in operation.mutates)]

        def work() -> None:
            host = {name: _raw(value) for name, value in arguments.items()}
            operation.check_values(host)
            with np.errstate(all="ignore"):  # a device rounds to infinity without a warning
                result = operation.reference(**host)  # what it mutates, it mutates in place
                results = result if isinstance(result, tuple) else (result,)
                for array, values in zip(outputs, results, strict=False):
                    array.raw()[...] = values

        provider.current_stream(device).submit(work, [array.storage for array in written])
        return outputs[0] if len(outputs) == 1 else tuple(outputs) or None

    return kernel


def _device(operation: Operation, arguments: dict[str, Any]) -> str:
    """The device that all arrays of a call lie on."""
    devices: dict[str, str] = {}
    for name in operation.args:
        value = arguments[name]
        if value is None:
            continue
        if not isinstance(value, DeviceArray) or value.device == HOST:
            where = "in host memory" if isinstance(value, DeviceArray) else type(value).__name__
            raise InvalidArgumentError(
                f"{operation.name}: {name} must be an array on a reference device, it is {where}.",
                hint="Make one with backend.from_numpy(...).",
            )
        devices[value.require_live().device] = name
    if len(devices) > 1:
        listed = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise InvalidArgumentError(f"{operation.name}: the arrays must share a device: {listed}.")
    return next(iter(devices))


def _raw(value: Any) -> Any:
    return value.raw() if isinstance(value, DeviceArray) else value
