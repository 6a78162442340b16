"""Providers that seem faster than they are, and one whose second reading is fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import numpy.typing as npt

from sagellm_backend.collectives import ReduceOp
from sagellm_backend.conformance.zoo.member import honest, kernel_fault, member
from sagellm_backend.conformance.zoo.parts import OwnKV
from sagellm_backend.conformance.zoo.stream import OwnStreams
from sagellm_backend.conformance.zoo.toy_group import Group, ToyGroups
from sagellm_backend.dtypes import DType
from sagellm_backend.hooks import Place
from sagellm_backend.kv import CompletedTransfer, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.kv import ReferenceKVCopyPlan
from sagellm_backend.reference.memory import Storage
from sagellm_backend.reference.provider import ReferenceProvider
from sagellm_backend.reference.streams import ReferenceStream, Task, Workers
from sagellm_backend.streams import Stream


@member(
    "kernels",
    "Synchronising the provider returns at once; reading a result waits",
    kills=(
        "kernels.speed_of_copies_in_the_device",
        "kernels.speed_of_decode_linear",
        "kernels.speed_of_prefill_linear",
        "kernels.speed_of_rms_norm",
        "attention.speed_of_paged_decode",
    ),
)
class SynchronizeReturnsAtOnce(OwnStreams):
    def _synchronize(self) -> None:
        return


class _Overflowing(ReferenceStream):
    def submit(self, work: Callable[[], object], writes: Iterable[Storage] = ()) -> Task:
        full = self._worker._queue.qsize() > 16
        return super().submit((lambda: None) if full else work, writes)


@member(
    "kernels",
    "A queue of 16 kernels drops what comes then",
    kills=("kernels.speed_of_calls",),
)
class FullQueueDropsWork(OwnStreams):
    stream = _Overflowing


@member(
    "core",
    "Uploads go on after the provider was synchronised; reading the array waits",
    kills=("core.speed_of_uploads",),
)
class UploadsAreNotAwaited(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._uploaders = Workers()
        self._uploads = ReferenceStream(self, self.device, self._uploaders)

    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        made = self._empty(array.shape, DType.parse(array.dtype), place)

        def work() -> None:
            time.sleep(0.01)
            made.raw()[...] = array

        self._uploads.submit(work, [made.storage])
        return made

    def close(self) -> None:
        super().close()
        self._uploaders.close()


@member(
    "core",
    "Downloads of one size share the memory that they arrive in",
    kills=("core.speed_of_downloads",),
)
class DownloadsShareMemory(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._staging: dict[Any, Array] = {}

    def _to_numpy(self, array: DeviceArray) -> npt.NDArray[Any]:
        found = super()._to_numpy(array)
        kept = self._staging.setdefault((found.shape, found.dtype), found)
        kept[...] = found
        return kept


class _TiringPlan(ReferenceKVCopyPlan):
    copies = 0

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        self.copies += 1
        if self.copies % 3:
            return super()._copy(sources, targets, stream)
        return CompletedTransfer(sources.size, sources.size * self.source.layout.page_bytes)


@member(
    "kv",
    "Every third copy of a plan is left out",
    kills=("kv.speed_of_block_copies", "kv.speed_of_swapping"),
)
class ThirdCopyIsLeftOut(OwnKV):
    plan = _TiringPlan


_products: dict[Any, Array] = {}
_weights: dict[Any, Array] = {}


@kernel_fault(
    "linear",
    "A product is remembered by its weight and by the shape of what it was given",
    kills=("kernels.speed_of_decode_linear", "kernels.speed_of_prefill_linear"),
)
def linear_remembers_products(x: Array, weight: Array, bias: Array | None = None) -> Any:
    key = (weight.ctypes.data, x.shape)
    if key not in _products:
        _products[key] = OPERATIONS["linear"].reference(x, weight, bias)
    return _products[key]


@kernel_fault(
    "rms_norm",
    "The weight is kept from the first call of that size",
    kills=("kernels.speed_of_rms_norm",),
)
def rms_norm_keeps_its_weight(x: Array, weight: Array, eps: float) -> Any:
    kept = _weights.setdefault(weight.shape, weight.copy())
    return OPERATIONS["rms_norm"].reference(x, kept, eps)


@kernel_fault(
    "attention",
    "What a batch was answered once is answered again",
    profile="attention",
    kills=("attention.speed_of_paged_decode",),
)
def attention_answers_as_before(
    q: Array,
    k: Array,
    v: Array,
    metadata: Any,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> Any:
    key = (metadata.block_table.tobytes(), q.shape)
    if key not in _products:
        _products[key] = OPERATIONS["attention"].reference(
            q,
            k,
            v,
            metadata,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )
    return _products[key]


class _Forgetful(Group):
    summed: object = None

    def _all_reduce(self, array: Any, op: ReduceOp, async_op: bool) -> Any:
        if array is self.summed and not async_op:
            return array
        self.summed = array
        return super()._all_reduce(array, op, async_op)


@member(
    "collective",
    "An array that was summed before is not summed again",
    kills=("collective.speed_of_all_reduce", "collective.latency_of_all_reduce"),
)
class SumsOnlyOnce(ToyGroups):
    group = _Forgetful


@honest(
    "Arrays that were read are kept on the host, and read from there again",
    profiles=("core", "attention"),
)
class KeepsWhatWasRead(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._kept: WeakKeyDictionary[Storage, dict[Any, Array]] = WeakKeyDictionary()

    def _to_numpy(self, array: DeviceArray) -> npt.NDArray[Any]:
        storage, raw = array.require_live().storage, array.raw()
        key = (storage.writer, raw.ctypes.data, raw.shape, raw.strides, raw.dtype)
        kept = self._kept.setdefault(storage, {})
        if key not in kept:
            kept.clear()
            time.sleep(0.0005)
            kept[key] = super()._to_numpy(array)
        return kept[key].copy()
