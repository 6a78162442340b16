"""Toys of optional features that the reference lacks: honest, and then broken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.zoo.member import honest, member
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import UnavailableError
from sagellm_backend.hooks import Place
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.arrays import DeviceArray
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
