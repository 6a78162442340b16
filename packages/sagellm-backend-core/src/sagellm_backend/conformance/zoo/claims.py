"""Providers that lack optional features: honest ones, and those that give what they deny."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sagellm_backend.capability import CapabilityDescriptor, Feature, KVCapability
from sagellm_backend.collectives import Communicator
from sagellm_backend.conformance.zoo.member import honest, member
from sagellm_backend.errors import CapabilityError
from sagellm_backend.graphs import Graph
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVBlock, KVCopyPlan, KVLayout, KVPool
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.kv import ReferenceKVCopyPlan
from sagellm_backend.reference.provider import ReferenceProvider
from sagellm_backend.reference.streams import ReferenceEvent, ReferenceStream

_FIELDS = {
    Feature.STREAM: ("has_stream",),
    Feature.EVENT: ("has_event",),
    Feature.KV_POOL: ("has_kv_block_copy", "has_kv_block_migrate"),
    Feature.KV_PEER_COPY: ("has_kv_block_migrate",),
}


class Lacking(ReferenceProvider):
    """The reference without some features, neither claimed nor given."""

    lacks: frozenset[Feature] = frozenset()

    def _features(self) -> frozenset[Feature]:
        return super()._features() - self.lacks

    def _capability(self) -> CapabilityDescriptor:
        denied: dict[str, Any] = {
            name: False for feature in self.lacks for name in _FIELDS.get(feature, ())
        }
        found = replace(super()._capability(), features=self._features(), **denied)
        return replace(found, kv=KVCapability()) if Feature.KV_POOL in self.lacks else found


_STREAMS = frozenset(
    {
        *(Feature.STREAM, Feature.STREAM_QUERY, Feature.EVENT),
        *(Feature.EVENT_TIMING, Feature.ASYNC_COPY),
    }
)
_POOLS = frozenset({Feature.KV_POOL, Feature.KV_HOST_POOL, Feature.KV_PEER_COPY})


@honest("It has no streams", profiles=("core", "stream", "kv"))
class LacksStreams(Lacking):
    lacks = _STREAMS


@honest("It has no KV pools", profiles=("core", "kv"))
class LacksPools(Lacking):
    lacks = _POOLS


@honest("Its pools stay on one device", profiles=("core", "kv"))
class LacksOtherPlaces(Lacking):
    lacks = frozenset({Feature.KV_HOST_POOL, Feature.KV_PEER_COPY, Feature.PINNED_MEMORY})


class _SilentStream(ReferenceStream):
    def query(self) -> bool:
        raise CapabilityError("stream_query", "reference", "streams here cannot be asked.")


class _UntimedEvent(ReferenceEvent):
    def _elapsed_ms(self, start: ReferenceEvent) -> float:
        raise CapabilityError("event_timing", "reference", "events here keep no time.")


class _SynchronousPlan(ReferenceKVCopyPlan):
    def _copy(self, sources: Any, targets: Any, stream: Any) -> Any:
        transfer = super()._copy(sources, targets, stream)
        transfer.wait()
        return transfer


@honest("Its streams cannot be asked and keep no time", profiles=("core", "stream", "kv"))
class LacksQueryAndTiming(Lacking):
    lacks = frozenset({Feature.STREAM_QUERY, Feature.EVENT_TIMING, Feature.ASYNC_COPY})

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        for device in self._devices():
            self._default_streams[device] = _SilentStream(self, device, self._workers)

    def _create_stream(self, priority: int) -> ReferenceStream:
        return _SilentStream(self, self.device, self._workers, priority)

    def _create_event(self) -> ReferenceEvent:
        return _UntimedEvent(self)

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return _SynchronousPlan(source, target)


@member("core", "Streams are denied, and given", kills=("core.no_streams",))
class StreamsAreDenied(LacksStreams):
    def create_stream(self, priority: int = 0) -> ReferenceStream:
        return self._create_stream(priority)


@member("core", "Events are denied, and None is given", kills=("core.no_events",))
class EventsAreNone(LacksStreams):
    def create_event(self) -> Any:
        return None


@member("core", "Stream queries are denied, and answered", kills=("core.no_stream_query",))
class QueriesAreDenied(Lacking):
    lacks = frozenset({Feature.STREAM_QUERY})


@member("core", "Timing is denied, and given", kills=("core.no_event_timing",))
class TimingIsDenied(Lacking):
    lacks = frozenset({Feature.EVENT_TIMING})


class _LatePlan(ReferenceKVCopyPlan):
    """Copies on a stream come 20 ms late."""

    def _copy(self, sources: Any, targets: Any, stream: Any) -> Any:
        if stream is not None:
            import time

            stream.submit(lambda: time.sleep(0.02))
        return super()._copy(sources, targets, stream)


@member("core", "Copies are late, and nobody was told", kills=("core.no_async_copy",))
class AsyncCopyIsDenied(Lacking):
    lacks = frozenset({Feature.ASYNC_COPY})

    def _kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        return _LatePlan(source, target)


@member(
    "core",
    "Pinned memory is denied, and the host has no other",
    kills=("core.no_pinned_memory",),
)
class HostArraysNeedPinnedMemory(Lacking):
    lacks = frozenset({Feature.PINNED_MEMORY})

    def _empty(self, shape: tuple[int, ...], dtype: Any, place: Place) -> DeviceArray:
        if place.location == "host":
            self.require(Feature.PINNED_MEMORY)
        return super()._empty(shape, dtype, place)


@member("kv", "Pools are denied, and given", kills=("kv.absent_pools_are_refused",))
class PoolsAreDenied(LacksPools):
    def kv_pool(self, layout: KVLayout, num_blocks: int, location: str = "device") -> KVPool:
        return self._kv_pool(layout, num_blocks, self._place(location))


@member(
    "kv",
    "Host pools are denied, and given on the device",
    kills=("kv.absent_host_pools_are_refused",),
)
class HostPoolsAreOnTheDevice(LacksOtherPlaces):
    def kv_pool(self, layout: KVLayout, num_blocks: int, location: str = "device") -> KVPool:
        return super().kv_pool(layout, num_blocks, "device" if location == "host" else location)


@member(
    "kv",
    "Copies between devices are denied, and made",
    kills=("kv.absent_peer_copies_are_refused", "core.no_peer_copy"),
)
class PeerCopiesAreDenied(LacksOtherPlaces):
    def kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        self._own_pool("source", source)
        return self._kv_copy_plan(source, self._own_pool("target", target))


@member("kv", "Migration is denied, and done", kills=("kv.absent_migration_is_refused",))
class MigrationIsDenied(LacksOtherPlaces):
    def kv_block_migrate(self, block: KVBlock, target_device: str) -> KVBlock:
        device = self._place(target_device).device
        return self._tokens.alloc(block.num_tokens, block.dtype, device)


@member(
    "core",
    "Registering host memory does nothing, and is not declared",
    kills=("core.no_host_registration",),
)
class RegistrationIsDenied(ReferenceProvider):
    def register_host_memory(self, array: Any) -> Any:
        import contextlib

        return contextlib.nullcontext()


@member("core", "Every pool has an empty handle", kills=("core.no_kv_export",))
class ExportGivesNothing(ReferenceProvider):
    def kv_export(self, pool: KVPool) -> bytes:
        return b""


@member(
    "core",
    "A group of one is given where more were asked for",
    kills=("core.no_collectives", "collective.absent_collectives_are_refused"),
)
class GroupsAreOfOne(ReferenceProvider):
    def communicator(self, *_: Any, **__: Any) -> Communicator:
        from sagellm_backend.conformance.zoo.toy_group import Alone

        return Alone(self, 30.0)


@member("graph", "A capture runs the function", kills=("graph.capture_is_refused",))
class CaptureRunsTheFunction(ReferenceProvider):
    def capture(self, function: Any, inputs: Any) -> Graph:
        function(**inputs)
        return super().capture(function, inputs)
