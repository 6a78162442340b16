"""Faults of how kernels are resolved and called, whatever they compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.conformance.zoo.member import kernel_fault, member
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import BackendError, InvalidArgumentError
from sagellm_backend.ops import operation
from sagellm_backend.ops.activation import softmax
from sagellm_backend.ops.cases import Array
from sagellm_backend.ops.dispatch import KernelTable
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.provider import ReferenceProvider

Kernel = Callable[..., Any]


class OwnCalls(ReferenceProvider):
    """The reference with kernels that :meth:`wrap` has changed."""

    def get_kernel(self, name: str, **static: Any) -> Kernel:
        return self.wrap(name, super().get_kernel(name, **static))

    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        """What is called for ``kernel``."""
        raise NotImplementedError


@member("kernels", "Bad arguments give None", kills=("kernels.bad_arguments_are_refused",))
class CallsSwallowErrors(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return kernel(*args, **kwargs)
            except InvalidArgumentError:
                return None

        return call


@member(
    "kernels",
    "kv_write clears the cache before it looks at the tokens",
    kills=("kernels.bad_arguments_are_refused",),
)
class CallsWriteBeforeChecking(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return kernel(*args, **kwargs)
            except BackendError:
                cache = kwargs.get("key_cache")
                if isinstance(cache, DeviceArray):
                    cache.raw()[...] = 0
                raise

        return call


@member("kernels", "Unknown arguments are dropped", kills=("kernels.bad_signatures_are_refused",))
class CallsTakeAnything(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        known = inspect.signature(operation(name).reference).parameters

        def call(*args: Any, **kwargs: Any) -> Any:
            return kernel(*args, **{key: kwargs[key] for key in kwargs if key in known})

        return call


@member(
    "kernels", "NumPy arrays are taken in silence", kills=("kernels.foreign_arrays_are_refused",)
)
class CallsTakeNumpyArrays(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def native(value: Any) -> Any:
            return self.from_numpy(value) if isinstance(value, np.ndarray) else value

        def call(*args: Any, **kwargs: Any) -> Any:
            return kernel(*map(native, args), **{key: native(kwargs[key]) for key in kwargs})

        return call


@member(
    "kernels",
    "Arrays of another device are fetched in silence",
    kills=("kernels.arrays_of_two_devices_are_refused",),
)
class CallsReadAcrossDevices(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def here(value: Any) -> Any:
            if isinstance(value, DeviceArray) and value.device != self.device:
                return self.from_numpy(self.to_numpy(value))
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return kernel(*map(here, args), **{key: here(kwargs[key]) for key in kwargs})

        return call


@member("kernels", "A slice is read as if it were contiguous", kills=("kernels.takes_slices",))
class CallsTakeSlicesForWhole(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def flat(value: Any) -> Any:
            if not isinstance(value, DeviceArray) or value.raw().flags.c_contiguous:
                return value
            memory = np.lib.stride_tricks.as_strided(
                value.raw(), value.shape, np.empty(value.shape, value.dtype).strides
            )
            return DeviceArray(memory, value.storage, value.device)

        def call(*args: Any, **kwargs: Any) -> Any:
            return kernel(*map(flat, args), **{key: flat(kwargs[key]) for key in kwargs})

        return call


@member(
    "kernels", "Positional arguments come in another order", kills=("kernels.calls_by_position",)
)
class CallsSwapPositions(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def call(*args: Any, **kwargs: Any) -> Any:
            return kernel(*args[:-2], *args[:-3:-1], **kwargs)

        return call


@member(
    "kernels", "A kernel is found whatever is asked", kills=("kernels.bad_statics_are_refused",)
)
class StaticsAreNotChecked(ReferenceProvider):
    def get_kernel(self, name: str, **static: Any) -> Kernel:
        try:
            return super().get_kernel(name, **static)
        except InvalidArgumentError:
            return super().get_kernel(name)


@member(
    "kernels",
    "A declared operation refuses whatever is asked of it",
    kills=("kernels.declared_is_not_always_refused",),
)
class GeluIsAlwaysRefused(ReferenceProvider):
    def _register_kernels(self, table: KernelTable) -> None:
        super()._register_kernels(table)
        (found,) = table._implementations.pop("gelu")
        table.register("gelu", found.fn, name="never", supports=lambda **_: ["not today"])


@member("kernels", "Results come in fp32", kills=("kernels.softmax",))
class ResultsAreFp32(OwnCalls):
    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = kernel(*args, **kwargs)
            if isinstance(result, DeviceArray) and DType.parse(result.dtype).is_floating:
                return self.from_numpy(self.to_numpy(result).astype(np.float32))
            return result

        return call


@member("kernels", "Work is lost where memory is reused", kills=("kernels.same_call_same_bits",))
class ResultsDependOnTheCall(OwnCalls):
    calls = 0

    def wrap(self, name: str, kernel: Kernel) -> Kernel:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = kernel(*args, **kwargs)
            self.calls += 1
            first = result if isinstance(result, DeviceArray) else kwargs.get("key_cache")
            if self.calls % 3 == 0 and isinstance(first, DeviceArray) and first.shape:
                self.synchronize()
                first.raw().reshape(-1)[:1] = 1
            return result

        return call


@kernel_fault(
    "softmax", "A softmax works in place and spoils its input", kills=("kernels.softmax",)
)
def softmax_spoils_its_input(x: Array) -> Array:
    result = softmax(x)
    x[...] = result.astype(x.dtype)
    return result
