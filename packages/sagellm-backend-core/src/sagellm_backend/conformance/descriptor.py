"""Descriptors out of reports: the capability that a report's plan was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sagellm_backend.capability import (
    CapabilityDescriptor,
    Feature,
    KernelKind,
    KVCapability,
    Limits,
)
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType, parse_dtypes
from sagellm_backend.errors import InvalidArgumentError


def capability_of(data: Mapping[str, Any]) -> CapabilityDescriptor:
    """The inverse of :meth:`CapabilityDescriptor.to_dict`.

    Raises :class:`InvalidArgumentError` for data that is no descriptor, or holds more than one.
    """
    try:
        values = dict(data)
        kv = dict(values["kv"])
        values["kv"] = KVCapability(
            **{
                **kv,
                "dtypes": parse_dtypes(kv["dtypes"]),
                "index_dtype": DType.parse(kv["index_dtype"]),
                **{name: tuple(kv[name]) for name in ("orders", "packings", "block_sizes")},
            }
        )
        values["operations"] = {
            name: parse_dtypes(dtypes) for name, dtypes in data["operations"].items()
        }
        values["devices"] = tuple(
            DeviceInfo(**{**device, "dtypes": parse_dtypes(device["dtypes"])})
            for device in data["devices"]
        )
        values["supported_dtypes"] = list(parse_dtypes(data["supported_dtypes"]))
        values["supported_kernels"] = [KernelKind(kind) for kind in data["supported_kernels"]]
        values["flush_subnormals"] = parse_dtypes(data["flush_subnormals"])
        values["features"] = frozenset(map(Feature, data["features"]))
        values["limits"] = Limits(**data["limits"])
        major, minor = data["contract"]
        values["contract"] = (major, minor)
        values["peer_access"] = frozenset((one, other) for one, other in data["peer_access"])
        missing = {field.name for field in fields(CapabilityDescriptor)} - values.keys()
        if missing:
            raise KeyError(*sorted(missing))
        return CapabilityDescriptor(**values)
    except KeyError as error:
        raise InvalidArgumentError(f"The descriptor has no {error}.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"The descriptor cannot be read: {error}") from error
