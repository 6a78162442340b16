"""Faults of KV pools: how they look, what they hold, what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.conformance.zoo.parts import OwnKV
from sagellm_backend.dtypes import DType
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVLayout, KVPool
from sagellm_backend.kv.blocks import out_of_blocks
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.kv import ReferenceKVPool
from sagellm_backend.reference.provider import ReferenceProvider

_LOOKS = "kv.caches_look_as_operations_see_them"
_CONTENTS = "kv.contents_stay_where_they_were_put"


class _Physical(ReferenceKVPool):
    def _cache(self, layer: int, kind: int) -> DeviceArray:
        found = super()._cache(layer, kind)
        values = found.raw()
        if self.layout.order == "HND":
            values = values.swapaxes(1, 2)
        return DeviceArray(values, found.storage, found.device)


@member("kv", "A cache in HND order shows its physical shape", kills=(_LOOKS,))
class CacheShowsPhysicalShape(OwnKV):
    pool = _Physical


class _IgnoringOrder(ReferenceKVPool):
    def _cache(self, layer: int, kind: int) -> DeviceArray:
        found = super()._cache(layer, kind)
        values = found.raw()
        if self.layout.order == "HND":
            values = values.swapaxes(1, 2).reshape(found.shape)
        return DeviceArray(values, found.storage, found.device)


@member("kv", "The order of a layout is ignored", kills=(_LOOKS,))
class CacheIgnoresOrder(OwnKV):
    pool = _IgnoringOrder


class _IgnoringPacking(ReferenceKVPool):
    def __init__(self, owner: Any, layout: KVLayout, num_blocks: int, place: Place) -> None:
        super().__init__(owner, replace(layout, packing="separate"), num_blocks, place)
        self.layout = layout


@member("kv", "The packing of a layout is ignored", kills=(_LOOKS,))
class CacheIgnoresPacking(OwnKV):
    pool = _IgnoringPacking


class _OneLayer(ReferenceKVPool):
    def _cache(self, layer: int, kind: int) -> DeviceArray:
        return super()._cache(0 * layer, kind)


@member("kv", "All layers share the memory of the first", kills=(_CONTENTS,))
class LayersOverlap(OwnKV):
    pool = _OneLayer


class _KeysOnly(ReferenceKVPool):
    def _cache(self, layer: int, kind: int) -> DeviceArray:
        return super()._cache(layer, 0 * kind)


@member("kv", "Keys and values share their memory", kills=(_CONTENTS,))
class KeysAndValuesOverlap(OwnKV):
    pool = _KeysOnly


class _Copied(ReferenceKVPool):
    def _cache(self, layer: int, kind: int) -> DeviceArray:
        found = super()._cache(layer, kind)
        return DeviceArray(found.raw().copy(), found.storage, found.device)


@member("kv", "A cache is a copy of the pool's memory", kills=(_CONTENTS,))
class CacheIsCopied(OwnKV):
    pool = _Copied


_kept: list[KVPool] = []


class _Unreleased(ReferenceKVPool):
    def close(self) -> None:
        self.on_close = None
        _kept.append(self)
        super().close()


@member(
    "kv",
    "A closed pool stays charged",
    kills=("kv.pools_are_accounted_for", "core.pools_are_counted_to_the_byte"),
)
class PoolStaysCharged(OwnKV):
    pool = _Unreleased


@member(
    "kv",
    "A pool that is forgotten is kept, and stays charged",
    kills=("kv.pools_are_accounted_for",),
)
class PoolIsNeverCollected(OwnKV):
    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        made = super()._kv_pool(layout, num_blocks, place)
        _kept.append(made)
        return made


class _Undead(ReferenceKVPool):
    def _require_open(self) -> None:
        return

    def _close(self) -> None:
        return


@member("kv", "A closed pool works on", kills=("kv.closed_pools_refuse_everything",))
class PoolOutlivesItsClose(OwnKV):
    pool = _Undead


class _LimitIgnored(ReferenceProvider):
    def _memory_limit(self, account: str) -> int:
        del account
        return 1 << 40


@member(
    "kv",
    "The memory limit is ignored",
    kills=("kv.memory_that_is_not_there_is_refused", "core.too_large_a_pool_is_refused"),
)
class LimitIsIgnored(_LimitIgnored):
    pass


@member(
    "kv",
    "FP8 pools are declared, and refused",
    kills=("kv.caches_look_as_operations_see_them",),
)
class KvRefusesFp8(OwnKV):
    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        if layout.dtype is DType.FP8:
            raise out_of_blocks(num_blocks, 0, 0)
        return super()._kv_pool(layout, num_blocks, place)


@member(
    "kv",
    "HND pools are not declared, and given",
    kills=("kv.layouts_are_kept_to_the_claims",),
)
class KvDeniesHnd(OwnKV):
    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        return replace(found, kv=replace(found.kv, orders=("NHD",)))

    def kv_pool(self, layout: KVLayout, num_blocks: int, location: str = "device") -> KVPool:
        if getattr(layout, "order", "") == "HND":
            return super()._kv_pool(layout, num_blocks, self._place(location))
        return super().kv_pool(layout, num_blocks, location)
