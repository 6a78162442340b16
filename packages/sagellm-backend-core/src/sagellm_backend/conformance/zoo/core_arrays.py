"""Faults of arrays: memory, bits, shapes."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.memory import Storage
from sagellm_backend.reference.provider import ReferenceProvider

_ROUND_TRIP = "core.arrays_round_trip"
_COPIES = "core.copies_are_copies"
_DISTINCT = "core.live_arrays_are_distinct"
_SLICES = "core.slices_keep_their_elements"


@member("core", "Arrays of one size share one memory", kills=(_DISTINCT,))
class ArraysAlias(ReferenceProvider):
    _storages: dict[tuple[int, str], Storage] = {}

    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        storage = self._storages.setdefault((made.nbytes, made.device), made.storage)
        values = storage.memory.view(dtype.numpy).reshape(shape)
        array = DeviceArray(values, storage, made.device)
        array.raw()[...] = 0
        return array


@member("core", "An array reaches 16 bytes into its neighbour", kills=(_DISTINCT,))
class ArraysOverlap(ReferenceProvider):
    _arena = np.zeros(1 << 28, np.uint8)
    _next = 0

    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        if not made.nbytes:
            return made
        start = ArraysOverlap._next
        ArraysOverlap._next += max(-(-made.nbytes // 64) * 64 - 64, 64)
        if ArraysOverlap._next + made.nbytes > self._arena.size:
            ArraysOverlap._next = 0
        values = self._arena[start : start + made.nbytes].view(dtype.numpy).reshape(shape)
        return DeviceArray(values, made.storage, made.device)


@member("core", "An array without elements cannot be made", kills=(_ROUND_TRIP,))
class EmptyArraysCrash(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        if 0 in shape:
            raise ValueError("cannot allocate 0 bytes")
        return super()._empty(shape, dtype, place)


@member("core", "empty() gives at least one dimension", kills=("core.empty_has_shape_and_dtype",))
class EmptyHasOneDimension(ReferenceProvider):
    def empty(self, shape: Any, dtype: Any, location: str = "device") -> DeviceArray:
        made: DeviceArray = super().empty(shape, dtype, location)
        return made if made.shape else made.reshape(1)


@member("core", "A copy in drops the last byte", kills=(_ROUND_TRIP,))
class CopyInDropsLastByte(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        made = super()._from_numpy(array, place)
        if made.nbytes:
            made.storage.memory[made.nbytes - 1] = 0x5A
        return made


@member("core", "A copy in flushes subnormal numbers to zero", kills=(_ROUND_TRIP,))
class CopyInFlushesSubnormals(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        if DType.parse(array.dtype).is_floating:
            wide = array.astype(np.float64)
            smallest = 2.0**-126 if array.dtype.itemsize == 4 else 2.0**-14
            array = np.where(np.abs(wide) < smallest, np.zeros((), array.dtype), array)
        return super()._from_numpy(array, place)


@member("core", "A copy out makes every NaN the same", kills=(_ROUND_TRIP,))
class CopyOutUnifiesNan(ReferenceProvider):
    def _to_numpy(self, array: DeviceArray) -> Array:
        found = super()._to_numpy(array)
        if DType.parse(found.dtype).is_floating:
            found[np.isnan(found.astype(np.float64))] = np.nan
        return found


@member("core", "bf16 arrays are kept as fp16", kills=(_ROUND_TRIP,))
class Bf16IsKeptAsFp16(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        if DType.parse(array.dtype) is DType.BF16:
            with np.errstate(all="ignore"):
                array = array.astype(np.float16).astype(array.dtype)
        return super()._from_numpy(array, place)


@member("core", "int64 arrays are kept as int32", kills=(_ROUND_TRIP,))
class Int64IsKeptAsInt32(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        if array.dtype == np.int64:
            array = array.astype(np.int32).astype(np.int64)
        return super()._from_numpy(array, place)


@member("core", "from_numpy keeps the caller's memory", kills=(_COPIES,))
class FromNumpyBorrows(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        made = super()._from_numpy(array, place)
        return DeviceArray(array, made.storage, made.device)


@member("core", "to_numpy shows the device's memory", kills=(_COPIES,))
class ToNumpyLends(ReferenceProvider):
    def _to_numpy(self, array: DeviceArray) -> Array:
        super()._to_numpy(array)
        return array.raw()


@member(
    "core", "A strided host array is taken for a contiguous one", kills=("core.any_strides_go_in",)
)
class StridesAreIgnored(ReferenceProvider):
    def from_numpy(self, array: npt.ArrayLike, location: str = "device") -> DeviceArray:
        given = np.asarray(array)
        if given.base is not None and given.flags.writeable and given.size:
            base: Any = given.base
            if getattr(base, "dtype", None) == given.dtype and base.size >= given.size:
                given = np.resize(base.reshape(-1)[: given.size], given.shape)
        made: DeviceArray = super().from_numpy(given, location)
        return made


class _Transposing(DeviceArray):
    __slots__ = ()

    def reshape(self, *shape: Any) -> DeviceArray:
        turned = DeviceArray(self.raw().copy(order="F"), self.storage, self.device)
        values = turned.raw().reshape(-1, order="F").reshape(*shape)
        return DeviceArray(values, self.storage, self.device)


@member("core", "reshape reads columns before rows", kills=("core.reshape_keeps_the_order",))
class ReshapeTransposes(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        made = super()._from_numpy(array, place)
        return _Transposing(made.raw(), made.storage, made.device)


class _Dropping(DeviceArray):
    __slots__ = ()

    def reshape(self, *shape: Any) -> DeviceArray:
        try:
            return super().reshape(*shape)
        except InvalidArgumentError:
            return DeviceArray(np.resize(self.raw(), *shape), self.storage, self.device)


@member("core", "reshape drops what does not fit", kills=("core.reshape_keeps_the_order",))
class ReshapeDrops(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        made = super()._from_numpy(array, place)
        return _Dropping(made.raw(), made.storage, made.device)


class _FromTheFirst(DeviceArray):
    __slots__ = ()

    def __getitem__(self, key: Any) -> DeviceArray:
        part = super().__getitem__(key)
        return DeviceArray(np.resize(self.raw(), part.shape), self.storage, self.device)


@member("core", "A slice is as long as asked for, of the first elements", kills=(_SLICES,))
class SlicesBeginAtTheFirst(ReferenceProvider):
    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        made = super()._from_numpy(array, place)
        return _FromTheFirst(made.raw(), made.storage, made.device)


@member(
    "core",
    "A write goes one element beyond the array",
    kills=("core.writes_stay_inside",),
)
class WritesRunOver(ReferenceProvider):
    """Arrays lie behind one another in one arena."""

    def __init__(self, config: Any = None) -> None:
        self._arena = np.zeros(1 << 26, np.uint8)
        self._end = 0
        super().__init__(config)

    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        if self._end + made.nbytes > self._arena.size:
            return made
        start, self._end = self._end, self._end + -(-made.nbytes // 8) * 8
        values = self._arena[start : start + made.nbytes].view(dtype.numpy).reshape(shape)
        return DeviceArray(values, made.storage, made.device)

    def _write_back(self, array: DeviceArray, values: npt.NDArray[Any]) -> None:
        super()._write_back(array, values)
        self.synchronize()
        start = array.raw().ctypes.data - self._arena.ctypes.data
        end = -(-(start + array.nbytes) // 8) * 8
        if array.nbytes and start >= 0 and end < self._arena.size:
            self._arena[end] ^= 0xFF


@member("core", "Nobody counts host memory", kills=("core.host_memory_is_counted",))
class HostMemoryIsNotCounted(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        if place.location != HOST:
            return made
        storage = Storage(made.nbytes)
        return DeviceArray(storage.memory.view(dtype.numpy).reshape(shape), storage, HOST)


@member("core", "Every array lies on the first device", kills=("core.devices_are_counted_apart",))
class OtherDevicesAreIgnored(ReferenceProvider):
    def _place(self, location: str) -> Place:
        found = super()._place(location)
        return found._replace(device=self._device_name(0))


_kept: list[Any] = []


@member(
    "core",
    "The memory of an array is never given back",
    kills=(
        "core.arrays_are_counted_while_they_live",
        "core.memory_can_be_filled_and_used_again",
    ),
)
class FreeDoesNothing(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        _kept.append(made.storage)
        return made


@member(
    "core",
    "An array is released with its first view that dies",
    kills=("core.arrays_are_counted_while_they_live",),
)
class ViewsReleaseMemory(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        ledger = self._ledgers.of(self._account(place))
        ledger.release(made.nbytes, "other")
        ledger.charge(made.nbytes, "other")
        storage = made.storage
        for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
            found = finalizer.peek()
            if found is not None and found[0] is storage:
                finalizer.detach()
        weakref.finalize(made, ledger.release, made.nbytes, "other").atexit = False
        return made
