"""Names of Protocol v0.1 that we keep are those of isagellm-protocol, value by value."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import sagellm_protocol as protocol

import sagellm_backend
from sagellm_backend import capability, collectives, devices, dtypes, errors

ENUMS = {
    "DType": (dtypes.DType, {"INT32", "INT64"}),  # ours, for indices
    "KernelKind": (capability.KernelKind, set()),
    "ErrorCode": (errors.ErrorCode, set()),
}


def values(kind):
    return {name: member.value for name, member in kind.__members__.items()}


@pytest.mark.parametrize("name", ENUMS)
def test_enums(name):
    ours, added = ENUMS[name]
    theirs = getattr(protocol, name)
    assert {k: v for k, v in values(ours).items() if k not in added} == values(theirs)
    for member in theirs:
        assert ours(member) == member  # theirs are taken for ours, and compare equal
        assert issubclass(ours, str)


def test_reductions_are_protocols():
    theirs = values(protocol.ReduceOp)
    assert values(collectives.ReduceOp).items() <= theirs.items()


def test_collectives_are_protocols():
    assert set(collectives.COLLECTIVES) <= {op.value for op in protocol.CollectiveOp}


def default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def test_the_descriptor_field_by_field():
    theirs = dataclasses.fields(protocol.CapabilityDescriptor)
    ours = dataclasses.fields(capability.CapabilityDescriptor)
    assert [(f.name, default(f)) for f in ours[: len(theirs)]] == [
        (f.name, default(f)) for f in theirs
    ]
    for name, method in inspect.getmembers(protocol.CapabilityDescriptor, inspect.isfunction):
        if not name.startswith("_"):
            mine = inspect.signature(getattr(capability.CapabilityDescriptor, name))
            assert list(mine.parameters) == list(inspect.signature(method).parameters), name


def test_a_descriptor_takes_the_members_of_the_protocol():
    found = sagellm_backend.get_provider("cpu").capability()
    assert found.supports_dtype(protocol.DType.FP32)
    assert not found.supports_dtype(protocol.DType.INT4)
    assert found.supports_kernel(protocol.KernelKind.MATMUL)
    theirs = protocol.CapabilityDescriptor(supported_dtypes=list(found.supported_dtypes))
    assert theirs.supports_dtype(protocol.DType.BF16)


def test_the_version():
    assert protocol.PROTOCOL_VERSION == capability.PROTOCOL_VERSION


@pytest.mark.parametrize("text", ["cpu", "cuda:1", "npu:0", "xpu:12"])
def test_device_strings(text):
    assert devices.parse_device_str(text) == protocol.parse_device_str(text)
    assert devices.format_device_str(*devices.parse_device_str(text)) == text
