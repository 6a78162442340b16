"""Capability is data: asked, required, and written down."""

from __future__ import annotations

import json

import pytest

from sagellm_backend.capability import (
    CapabilityDescriptor,
    Feature,
    KernelKind,
    Limits,
    Requirements,
)
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError

# Names, order and defaults as Protocol v0.1 publishes them.
PROTOCOL_FIELDS = {
    "device_name": None,
    "device_type": "unknown",
    "compute_capability": None,
    "total_memory_bytes": None,
    "available_memory_bytes": None,
    "supported_dtypes": [],
    "supported_kernels": [],
    "has_stream": False,
    "has_event": False,
    "has_collective": False,
    "has_graph_exec": False,
    "supported_collectives": [],
    "has_kv_block_copy": False,
    "has_kv_block_migrate": False,
    "max_memory_mb": None,
    "max_batch_size": None,
    "max_sequence_length": None,
}


@pytest.fixture
def chip():
    return CapabilityDescriptor(
        provider="chip",
        device_type="cuda",
        supported_dtypes=[DType.FP32, DType.BF16],
        supported_kernels=[KernelKind.MATMUL],
        supported_collectives=["all_reduce"],
        features=frozenset({Feature.STREAM, Feature.EVENT}),
        operations={"linear": (DType.BF16,), "softmax": (DType.FP32, DType.BF16)},
        limits=Limits(max_batch=8, max_head_dim=128),
        available_memory_bytes=1000,
        devices=(DeviceInfo(0, "Chip One", 2000, (DType.BF16,)),),
        peer_access=frozenset({(0, 1), (1, 0)}),
        flush_subnormals=(DType.BF16,),
    )


def test_protocol_s_fields_come_first_with_its_defaults():
    blank = CapabilityDescriptor()
    names = list(vars(blank))[: len(PROTOCOL_FIELDS)]
    assert {name: getattr(blank, name) for name in names} == PROTOCOL_FIELDS
    assert names == list(PROTOCOL_FIELDS)


def test_descriptors_share_nothing():
    first, second = CapabilityDescriptor(), CapabilityDescriptor()
    first.supported_dtypes.append(DType.FP32)
    first.operations["linear"] = (DType.FP32,)
    assert second.supported_dtypes == []
    assert second.operations == {}


def test_questions_take_members_and_words(chip):
    assert chip.supports_dtype("bf16")
    assert not chip.supports_dtype(DType.INT8)
    assert chip.supports_kernel("matmul")
    assert not chip.supports_kernel(KernelKind.SOFTMAX)
    assert chip.supports_collective("all_reduce")
    assert chip.supports_feature("stream")
    assert not chip.supports_feature(Feature.GRAPH)


def test_a_dtype_can_be_required_for_an_operation(chip):
    chip.require_dtype(DType.FP32)
    chip.require_dtype("bf16", "linear")
    with pytest.raises(CapabilityError, match="linear has no fp32; it has bf16"):
        chip.require_dtype(DType.FP32, "linear")
    with pytest.raises(NotImplementedError, match="operation has no fp16"):
        chip.require_dtype(DType.FP16)


def test_collectives_and_graphs_can_be_required(chip):
    chip.require_collective("all_reduce")
    with pytest.raises(CapabilityError, match="no collective all_to_all"):
        chip.require_collective("all_to_all")
    with pytest.raises(CapabilityError, match="no feature graph"):
        chip.require_graph_exec()


def test_what_is_met_has_no_shortfall(chip):
    needs = Requirements(
        dtypes=(DType.BF16,),
        features=(Feature.STREAM,),
        operations=("linear",),
        operation_dtypes={"softmax": (DType.FP32,)},
        collectives=("all_reduce",),
        memory_bytes=1000,
        batch=8,
        sequence_length=10**9,
        head_dim=128,
    )
    assert chip.shortfalls(needs) == []
    chip.require(needs)


def test_one_error_lists_every_shortfall(chip):
    needs = Requirements(
        dtypes=(DType.FP16,),
        features=(Feature.GRAPH,),
        operations=("rope",),
        operation_dtypes={"linear": (DType.FP32,), "gelu": (DType.BF16,)},
        collectives=("broadcast",),
        memory_bytes=1001,
        batch=9,
        head_dim=256,
    )
    with pytest.raises(CapabilityError) as caught:
        chip.require(needs)
    for said in (
        "'chip'",
        "no fp16 arrays (has fp32, bf16)",
        "no feature graph",
        "no operation rope",
        "no fp32 for linear (has bf16)",
        "no bf16 for gelu (has none)",
        "no collective broadcast (has all_reduce)",
        "memory_bytes of 1,001 wanted, 1,000 is the limit",
        "batch of 9 wanted, 8 is the limit",
        "head_dim of 256 wanted, 128 is the limit",
    ):
        assert said in caught.value.message
    assert len(chip.shortfalls(needs)) == 9


def test_an_unknown_limit_is_no_limit():
    assert CapabilityDescriptor().shortfalls(Requirements(memory_bytes=2**60, batch=2**30)) == []


def test_the_descriptor_is_plain_data(chip):
    data = json.loads(json.dumps(chip.to_dict()))
    assert data["supported_dtypes"] == ["fp32", "bf16"]
    assert data["features"] == ["event", "stream"]
    assert data["operations"]["linear"] == ["bf16"]
    assert data["peer_access"] == [[0, 1], [1, 0]]
    assert data["flush_subnormals"] == ["bf16"]
    assert data["devices"][0]["name"] == "Chip One"
    assert data["kv"]["index_dtype"] == "int32"
