"""Toys of optional features that the reference lacks: honest, and then broken."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.zoo.member import honest, member
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVLayout, KVPool
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.kv import ReferenceKVPool
from sagellm_backend.reference.provider import ReferenceProvider
from sagellm_backend.reference.streams import ReferenceStream

_DLPACK_CPU = (1, 0)


class Having(ReferenceProvider):
    """The reference with further features."""

    has: frozenset[Feature] = frozenset()

    def _features(self) -> frozenset[Feature]:
        return super()._features() | self.has

    def _capability(self) -> CapabilityDescriptor:
        return replace(super()._capability(), features=self._features())


@honest("It registers host memory, all of which it can read anyway", profiles=("core",))
class RegistersMemory(Having):
    has = frozenset({Feature.HOST_REGISTER})

    @contextlib.contextmanager
    def _register_host_memory(self, array: Array) -> Iterator[None]:
        del array
        yield


@member("core", "A registration is never ended", kills=("core.host_registration",))
class RegistrationNeverEnds(RegistersMemory):
    _registered: set[int] = set()

    @contextlib.contextmanager
    def _register_host_memory(self, array: Array) -> Iterator[None]:
        if array.ctypes.data in self._registered:
            raise UnavailableError("This memory is registered already.")
        self._registered.add(array.ctypes.data)
        yield


class _Lent(DeviceArray):
    __slots__ = ()

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CPU

    def __dlpack__(self, **_: Any) -> Any:
        return self.raw().__dlpack__()


class _LentChanged(_Lent):
    __slots__ = ()

    def __dlpack__(self, **_: Any) -> Any:
        return self.raw()[::-1].copy().__dlpack__()


@honest("Its arrays speak DLPack", profiles=("core",))
class SpeaksDlpack(Having):
    has = frozenset({Feature.DLPACK})
    array: type[DeviceArray] = _Lent

    def _empty(self, shape: tuple[int, ...], dtype: DType, place: Place) -> DeviceArray:
        made = super()._empty(shape, dtype, place)
        return self.array(made.raw(), made.storage, made.device)


@member("core", "DLPack shows other elements", kills=("core.dlpack",))
class DlpackShowsOthers(SpeaksDlpack):
    array = _LentChanged


class SharedPool(ReferenceKVPool):
    """A pool in a file, which other processes can map."""

    def __init__(
        self, owner: Any, layout: KVLayout, num_blocks: int, place: Place, path: str | None = None
    ) -> None:
        super().__init__(owner, layout, num_blocks, place)
        self.path, self.own = path or _file_of(layout.nbytes(num_blocks)), path is None
        memory = np.memmap(self.path, np.uint8, "r+")
        self.storage.memory = memory
        if layout.packing == "separate":
            self.pages = memory.reshape(layout.num_layers, 2, num_blocks, layout.block_bytes)
        else:
            shape = (layout.num_layers, num_blocks, 2, layout.block_bytes)
            self.pages = memory.reshape(shape).swapaxes(1, 2)

    def alloc(self, count: int) -> Any:
        if not self.own:
            raise InvalidArgumentError("The blocks of this pool are counted by another process.")
        return super().alloc(count)

    def _close(self) -> None:
        super()._close()
        if self.own:
            Path(self.path).unlink()


def _file_of(nbytes: int) -> str:
    descriptor, path = tempfile.mkstemp(prefix="sagellm-pool-")
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(nbytes)
    return path


@honest("Its pools can be opened by other processes", profiles=("core",))
class ExportsPools(Having):
    has = frozenset({Feature.KV_EXPORT})

    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        return SharedPool(self, layout, num_blocks, place)

    def _kv_export(self, pool: Any) -> bytes:
        pool._require_open()
        return json.dumps([pool.path, pool.layout.to_json(), pool.num_blocks]).encode()

    def _kv_open(self, handle: bytes) -> KVPool:
        try:
            path, layout, num_blocks = json.loads(handle)
            return SharedPool(
                self, KVLayout.from_json(layout), num_blocks, self._place("device"), path
            )
        except (ValueError, TypeError, OSError) as error:
            raise InvalidArgumentError(f"This is no handle of a pool: {error}.") from error


@member("core", "A pool that is closed has a handle", kills=("core.kv_export_gives_handles",))
class HandlesOutliveTheirPool(ExportsPools):
    def _kv_export(self, pool: Any) -> bytes:
        return json.dumps([pool.path, pool.layout.to_json(), pool.num_blocks]).encode()


@honest("Its streams have priorities", profiles=("core", "stream"))
class HasPriorities(Having):
    has = frozenset({Feature.STREAM_PRIORITY})


@member(
    "stream",
    "Streams forget their priority",
    kills=("stream.urgent_streams_work_beside_others",),
)
class PrioritiesAreForgotten(HasPriorities):
    def _create_stream(self, priority: int) -> ReferenceStream:
        return super()._create_stream(0 * priority)
