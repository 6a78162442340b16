"""Faults of copies in time: their order, and what a transfer says of itself."""

from __future__ import annotations

import time
from typing import Any

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.conformance.zoo.parts import NoisyPool, OwnKV, OwnMove
from sagellm_backend.kv import CompletedTransfer, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.kv import ReferenceKVCopyPlan
from sagellm_backend.reference.streams import ReferenceStream
from sagellm_backend.streams import Stream

_ORDERED = "kv.copies_follow_what_their_stream_was_given_before"


class _EarlyTransfer(Transfer):
    def done(self) -> bool:
        return True

    def _wait(self, timeout_s: float) -> None:
        del timeout_s


class _EarlyPlan(ReferenceKVCopyPlan):
    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        made = super()._copy(sources, targets, stream)
        return _EarlyTransfer(made.num_blocks, made.nbytes)


@member("kv", "A transfer says that it is done while it is under way", kills=(_ORDERED,))
class TransferIsAlwaysDone(OwnKV):
    plan = _EarlyPlan


class _OvertakingPlan(OwnMove):
    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        fresh = None if stream is None else self.source.owner.create_stream()
        return super()._copy(sources, targets, fresh)


@member("kv", "A copy overtakes the earlier work of its stream", kills=(_ORDERED,))
class CopyOvertakesItsStream(OwnKV):
    plan = _OvertakingPlan


class _BlockingPlan(ReferenceKVCopyPlan):
    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        write = self.target.pages
        write[:, :, targets] = self.source.pages[:, :, sources]
        return CompletedTransfer(sources.size, sources.size * self.source.layout.page_bytes)


@member(
    "kv",
    "A copy reads its source before kernels that were called earlier have written it",
    kills=(_ORDERED,),
)
class CopyDoesNotWaitForKernels(OwnKV):
    plan = _BlockingPlan


class _LazyPlan(ReferenceKVCopyPlan):
    waiting: list[tuple[ReferenceKVCopyPlan, Ids, Ids]] = []

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        if self.direction == "device-to-host":
            plan = ReferenceKVCopyPlan(self.source, self.target)
            self.waiting.append((plan, sources.copy(), targets.copy()))
            return CompletedTransfer(sources.size, sources.size * self.source.layout.page_bytes)
        while self.waiting:
            plan, from_ids, to_ids = self.waiting.pop(0)
            plan._copy(from_ids, to_ids, None)
        return super()._copy(sources, targets, stream)


@member(
    "kv",
    "Swapping out keeps no bytes until something is swapped in",
    kills=("kv.swapped_blocks_come_back_as_they_were",),
)
class SwapIsLazy(OwnKV):
    plan = _LazyPlan


class _LenientPlan(ReferenceKVCopyPlan):
    def copy(self, source_ids: Any, target_ids: Any, stream: Any = None) -> Transfer:
        own = None if getattr(stream, "owner", self) is not self.source.owner else stream
        return super().copy(source_ids, target_ids, own)


@member(
    "kv",
    "A copy takes streams of other providers",
    kills=("kv.copies_refuse_streams_of_others",),
)
class CopyTakesForeignStreams(OwnKV):
    plan = _LenientPlan


class _SharedStaging(OwnMove):
    """Every copy passes through one buffer, filled at the call and emptied by the stream."""

    staging: Array | None = None

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        if stream is None:
            return super()._copy(sources, targets, stream)
        type(self).staging = self.source.pages[:, :, sources].copy()
        shared = type(self)

        def empty(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
            del read, sources
            write[:, :, targets] = shared.staging

        made = OwnMove(self.source, self.target)
        made.move = empty
        return made._copy(sources, targets, stream)


@member(
    "kv",
    "All copies under way share one staging buffer",
    kills=("kv.copies_on_several_streams_all_arrive",),
)
class CopySharesStaging(OwnKV):
    plan = _SharedStaging


class _LateAndSilent(ReferenceKVCopyPlan):
    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        if isinstance(stream, ReferenceStream):
            stream.submit(lambda: time.sleep(0.05))
        made = super()._copy(sources, targets, stream)
        return _EarlyTransfer(made.num_blocks, made.nbytes)


@member("kv", "Waiting for a transfer does not wait", kills=(_ORDERED, "core.async_copy"))
class TransferDoesNotWait(OwnKV):
    plan = _LateAndSilent
    pool = NoisyPool

    def _to_numpy(self, array: DeviceArray) -> Array:
        return array.require_live().raw().copy(order="C")
