"""Arrays on a simulated device, whose data the host cannot touch by accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.reference.memory import Storage


class HostAccessError(InvalidArgumentError, TypeError):
    """The host tried to read, write or compute with the data of a device array."""


class DeviceArray:
    """A view of device memory. Made by ``backend.empty`` and ``backend.from_numpy``.

    Its device is ``"host"`` where it lies in host memory, which no kernel takes. It shows its shape, dtype, strides and device; whatever would touch its data raises
    :class:`HostAccessError`. Equality and hash are refused and by identity, as for any array.
    Thread-safe; the memory is released with the last view of it.
    """

    __slots__ = ("__weakref__", "_values", "device", "storage")
    __hash__ = object.__hash__

    def __init__(self, values: npt.NDArray[Any], storage: Storage, device: str) -> None:
        self._values = values
        self.storage = storage
        self.device = device

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        return self._values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype; ml_dtypes' for bf16 and fp8."""
        return self._values.dtype

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, by dimension."""
        return self._values.strides

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._values.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self._values.nbytes

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view of another shape, given as a tuple or as sizes; one of them may be -1.

        Raises :class:`InvalidArgumentError` if the sizes do not fit, or if only a copy could have
        this shape.
        """
        try:
            values = self._values.reshape(*shape)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{self!r} cannot be reshaped: {error}.") from None
        if values.size and not np.may_share_memory(values, self._values):
            raise InvalidArgumentError(
                f"{self!r} with strides {self.strides} cannot have shape {values.shape} without "
                "being copied."
            )
        return DeviceArray(values, self.storage, self.device)

    def __getitem__(self, key: Any) -> DeviceArray:
        """A view of a part: ``array[start:stop]`` in any dimensions, in steps forwards.

        Raises :class:`HostAccessError` for anything else, an element above all.
        """
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, slice) and (part.step or 1) > 0 for part in parts):
            raise _host_access("getitem", self)
        try:
            return DeviceArray(self._values[parts], self.storage, self.device)
        except (IndexError, TypeError) as error:
            raise InvalidArgumentError(f"{self!r} has no part {key}: {error}.") from None

    def raw(self) -> npt.NDArray[Any]:
        """The data itself, for the threads of streams; everybody else uses ``to_numpy``."""
        return self._values

    def require_live(self) -> DeviceArray:
        """This array; :class:`UnavailableError` if the pool that it is a view of was closed."""
        if self.storage.freed:
            raise UnavailableError(f"The memory of {self!r} was given back: its pool is closed.")
        return self

    @property
    def __array_interface__(self) -> Any:
        raise _host_access("__array_interface__", self)

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device={self.device!r})"


_CONVERSIONS = [
    "array",
    "buffer",
    "dlpack",
    "bool",
    "float",
    "int",
    "index",
    "complex",
    "reduce_ex",
]
_ITEMS = ["setitem", "delitem", "iter", "contains"]
_COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
_UNARY = ["neg", "pos", "abs", "invert", "round", "trunc", "floor", "ceil"]
_ARITHMETIC = ["add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow"]
_BINARY = [*_ARITHMETIC, "lshift", "rshift", "and", "xor", "or"]
_SIDES = ["", "r", "i"]
_REFUSED = [
    *(_CONVERSIONS + _ITEMS + _COMPARISONS + _UNARY),
    *("array_ufunc", "array_function", "divmod", "rdivmod"),
    *(side + name for name in _BINARY for side in _SIDES),
]


def _host_access(name: str, array: DeviceArray) -> HostAccessError:
    return HostAccessError(
        f"{name} would touch the data of {array!r} from the host.",
        hint="Copy it with backend.to_numpy(array), or compute with a kernel of the backend.",
    )


def _refuse(name: str) -> Callable[..., Any]:
    def method(self: DeviceArray, *_args: object, **_kwargs: object) -> Any:
        raise _host_access(name, self)

    method.__name__ = name
    return method


for _name in _REFUSED:
    setattr(DeviceArray, f"__{_name}__", _refuse(f"__{_name}__"))
