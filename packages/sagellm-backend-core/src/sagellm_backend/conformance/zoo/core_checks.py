"""Faults of what is checked, and of how a failure is told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import ErrorCode, OutOfMemoryError, UnavailableError
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.kv import KVBlock
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.memory import charged_storage
from sagellm_backend.reference.provider import ReferenceProvider


@member(
    "core",
    "Out of memory has the code of another failure",
    kills=("core.errors_are_of_one_family",),
)
class ErrorsHaveOtherCodes(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        try:
            return super()._empty(shape, dtype, place)
        except OutOfMemoryError as error:
            error.code = ErrorCode.UNAVAILABLE
            raise


@member(
    "core",
    "Errors of kernels come through as they are",
    kills=("core.faults_of_kernels_are_explained",),
)
class KernelErrorsComeThrough(ReferenceProvider):
    def get_kernel(self, name: str, **static: Any) -> Callable[..., Any]:
        super().get_kernel(name, **static)
        return self.kernels._implementations[name][0].fn


@member(
    "core", "A size is made a whole number of 0 and above", kills=("core.bad_shapes_are_refused",)
)
class ShapesAreRounded(ReferenceProvider):
    def empty(self, shape: Any, dtype: Any, location: str = "device") -> DeviceArray:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            shape = abs(int(shape))
        made: DeviceArray = super().empty(shape, dtype, location)
        return made


@member("core", "Arrays of float64 become fp32", kills=("core.bad_dtypes_are_refused",))
class Float64BecomesFp32(ReferenceProvider):
    def from_numpy(self, array: npt.ArrayLike, location: str = "device") -> DeviceArray:
        given = np.asarray(array)
        if given.dtype == np.float64:
            given = given.astype(np.float32)
        made: DeviceArray = super().from_numpy(given, location)
        return made


@member("core", "to_numpy takes what is no array", kills=("core.foreign_arrays_are_no_arrays",))
class ToNumpyTakesAnything(ReferenceProvider):
    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        return super().to_numpy(array) if isinstance(array, DeviceArray) else np.asarray(array)


@member(
    "core",
    "Anything names a kernel by its text",
    kills=("core.bad_names_of_kernels_are_refused",),
)
class KernelNamesAreTexts(ReferenceProvider):
    def register_kernel(self, name: str, impl: Callable[..., Any]) -> None:
        super().register_kernel(str(name), impl)


@member("core", "Unknown settings are ignored", kills=("core.bad_config_is_refused",))
class UnknownSettingsAreIgnored(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        if isinstance(config, dict):
            config = {name: config[name] for name in config if name != "telepathy"}
        super().__init__(config)


@member("core", "A length of 0 is taken for 1", kills=("core.bad_batches_are_refused",))
class LengthsAreClamped(ReferenceProvider):
    def attention_metadata(self, query_lens: Any, *more: Any, **named: Any) -> AttentionMetadata:
        if isinstance(query_lens, list) and all(type(item) is int for item in query_lens):
            query_lens = [max(item, 1) for item in query_lens]
        return super().attention_metadata(query_lens, *more, **named)


@member("core", "0 tokens take a block", kills=("core.bad_kv_requests_are_refused",))
class NoTokensTakeABlock(ReferenceProvider):
    def kv_block_alloc(self, num_tokens: int, dtype: DType) -> KVBlock:
        return super().kv_block_alloc(num_tokens or 1, dtype)


@member(
    "core",
    "Synchronising without work fails",
    kills=("core.synchronize_is_always_allowed",),
)
class SynchronizeNeedsWork(ReferenceProvider):
    def synchronize(self) -> None:
        if not self._workers.members:
            raise UnavailableError("Nothing was submitted.")
        super().synchronize()


@member("core", "Pinned memory counts on the device", kills=("core.pinned_memory",))
class PinnedMemoryCountsOnTheDevice(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        if place.location != HOST:
            return super()._empty(shape, dtype, place)
        nbytes = dtype.nbytes(int(np.prod(shape, dtype=np.int64)))
        storage = charged_storage(nbytes, self._ledgers.of(place.device))
        return DeviceArray(storage.memory.view(dtype.numpy).reshape(shape), storage, HOST)


@member("core", "A watcher thread is never joined", kills=("core.ten_lives_leave_nothing",))
class WatchersAreLeftBehind(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        threading.Thread(target=threading.Event().wait, daemon=True, name="watcher").start()


@member(
    "core",
    "all_reduce of one process doubles",
    kills=(
        "core.collectives_alone_are_the_identity",
        "collective.protocol_calls_alone_change_nothing",
    ),
)
class AllReduceAloneDoubles(ReferenceProvider):
    def all_reduce(self, tensor: Any, op: str = "sum") -> None:
        super().all_reduce(tensor, op)
        values = self.to_numpy(tensor)
        self._write_back(tensor, values + values)


@member(
    "core",
    "all_gather of one process adds no axis",
    kills=("core.collectives_alone_are_the_identity",),
)
class AllGatherAloneAddsNoAxis(ReferenceProvider):
    def all_gather(self, tensor: Any) -> Any:
        super().all_gather(tensor)
        return tensor


class _Lent(DeviceArray):
    __slots__ = ()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **_: Any) -> Any:
        return self.raw().__dlpack__()


@member("core", "Arrays speak DLPack, which is not declared", kills=("core.no_dlpack",))
class DlpackIsDenied(ReferenceProvider):
    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        return _Lent(made.raw(), made.storage, made.device)
