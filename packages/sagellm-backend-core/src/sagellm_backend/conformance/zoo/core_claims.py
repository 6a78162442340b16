"""Faults of the descriptor: claims that are wrong, or that are not kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.dtypes import DType
from sagellm_backend.hooks import Place
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.provider import ReferenceProvider

_AGREE = "core.fields_and_features_agree"
_FORMED = "core.descriptor_is_well_formed"
_NAMES = "core.claims_have_known_names"


class OwnClaims(ReferenceProvider):
    """The reference with other claims than it keeps."""

    claims: dict[str, Any] = {}

    def _capability(self) -> CapabilityDescriptor:
        return replace(super()._capability(), **self.claims)


@member("core", "has_stream is false, and streams are declared", kills=(_AGREE,))
class FieldsDenyStreams(OwnClaims):
    claims = {"has_stream": False}


@member("core", "Collectives are listed, and not declared", kills=(_AGREE,))
class CollectivesAreListed(OwnClaims):
    claims = {"supported_collectives": ["all_reduce"]}


@member("core", "The descriptor has another provider's name", kills=(_FORMED,))
class DescriptorHasAnotherName(OwnClaims):
    claims = {"provider": "zoo"}


@member("core", "More memory is free than there is", kills=(_FORMED,))
class MoreIsFreeThanThere(OwnClaims):
    claims = {"available_memory_bytes": 1 << 50}


@member("core", "The devices are counted from 1", kills=(_FORMED,))
class DevicesCountFromOne(OwnClaims):
    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        devices = tuple(replace(device, index=device.index + 1) for device in found.devices)
        return replace(found, devices=devices)


@member("core", "An operation is declared that the table does not have", kills=(_NAMES,))
class UnknownOperationIsClaimed(OwnClaims):
    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        return replace(found, operations={**found.operations, "telepathy": (DType.FP32,)})


@member("core", "The descriptor holds NaN", kills=("core.descriptor_is_plain_data",))
class DescriptorHoldsNan(OwnClaims):
    claims = {"versions": {"numpy": float("nan")}}


@member("core", "All callers share one descriptor", kills=("core.descriptor_is_the_callers_own",))
class DescriptorIsShared(ReferenceProvider):
    _shared: CapabilityDescriptor | None = None

    def capability(self) -> CapabilityDescriptor:
        if self._shared is None:
            self._shared = super().capability()
        return self._shared


@member(
    "core",
    "A claim is dropped after the first use",
    kills=("core.descriptor_does_not_change",),
)
class ClaimsAreDropped(ReferenceProvider):
    _used = False

    def _from_numpy(self, array: Any, place: Place) -> DeviceArray:
        type(self)._used = True
        return super()._from_numpy(array, place)

    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        return replace(found, limits=replace(found.limits, max_batch=8)) if self._used else found


@member(
    "core",
    "An operation is not declared, and computed",
    kills=("core.undeclared_operations_are_refused",),
)
class OperationIsDenied(OwnClaims):
    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        del found.operations["gelu"]
        return found


@member("core", "int4 arrays are declared, and refused", kills=("core.arrays_round_trip",))
class Int4IsClaimed(OwnClaims):
    def _capability(self) -> CapabilityDescriptor:
        found = super()._capability()
        found.supported_dtypes.append(DType.INT4)
        return found
