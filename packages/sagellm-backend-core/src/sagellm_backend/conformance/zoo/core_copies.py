"""Faults of the copies that are optional features: between devices, and beside the host."""

from __future__ import annotations

import time

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.conformance.zoo.parts import OwnKV, OwnMove
from sagellm_backend.kv import Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.kv import ReferenceKVCopyPlan, ReferenceTransfer
from sagellm_backend.reference.streams import ReferenceStream
from sagellm_backend.streams import Stream

_PEER = ("core.peer_copy",)


class _AbsentPlan(OwnMove):
    def move(self, read: Array, write: Array, sources: Ids, targets: Ids) -> None:
        if self.source.device == self.target.device:
            write[:, :, targets] = read[:, :, sources]


@member("core", "A copy between devices moves nothing", kills=_PEER)
class PeerCopyMovesNothing(OwnKV):
    plan = _AbsentPlan


class _WidePlan(OwnMove):
    def move(self, read: Array, write: Array, sources: Ids, targets: Ids) -> None:
        write[:, :, targets] = read[:, :, sources]
        if self.source.device != self.target.device:
            last = write.shape[2] - 1
            write[:, :, (targets + 1).clip(max=last), -1] = read[:, :, sources, -1]


@member("core", "A copy between devices ends one byte behind its block", kills=_PEER)
class PeerCopySpillsOver(OwnKV):
    plan = _WidePlan


class _LatePlan(ReferenceKVCopyPlan):
    """A copy on a stream is said to be done when its turn has come, and reads a little later."""

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        if not isinstance(stream, ReferenceStream):
            return super()._copy(sources, targets, stream)
        read, write = self.source.pages, self.target.pages
        from_ids, to_ids, turn = sources.copy(), targets.copy(), stream.mark()
        engine = self.source.owner._create_stream(0)

        def work() -> None:
            turn.join()
            time.sleep(0.03)
            write[:, :, to_ids] = read[:, :, from_ids]

        engine.submit(work, [self.target.storage])
        return ReferenceTransfer(turn, sources.size, sources.size * self.source.layout.page_bytes)


@member(
    "core",
    "A copy on a stream reads its source after it was waited for",
    kills=("core.async_copy",),
)
class AsyncCopyReadsLate(OwnKV):
    plan = _LatePlan
