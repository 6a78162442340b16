"""The provider on the simulated torch device: what it offers, and what it does not."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import simdev
import torch
from examination import CHIPS, attention_cases, pool_findings
from npu_l0.library import CALLED

from sagellm_backend import DType, KVLayout
from sagellm_backend.ascend import npu, startup
from sagellm_backend.ascend.provider import AscendFP16Provider, AscendProvider
from sagellm_backend.capability import Feature
from sagellm_backend.conformance.operations import to_native
from sagellm_backend.errors import CapabilityError, UnavailableError
from sagellm_backend.ops import operation

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=128, block_size=128, dtype=DType.FP16)


@pytest.mark.parametrize("chip", CHIPS)
def test_the_class_follows_the_chip(make, chip):
    backend = make(CHIPS[chip])
    half = chip in ("310P", "910", "unknown")
    assert type(backend) is (AscendFP16Provider if half else AscendProvider)
    capability = backend.capability()
    assert capability.provider == "ascend"
    assert capability.compute_capability == chip
    assert {item.facts["family"] for item in capability.devices} == {chip}
    assert (DType.BF16 in capability.supported_dtypes) == (not half)
    assert capability.versions["torch_npu"] == torch.__version__


def test_what_is_offered_and_what_is_withheld(make):
    backend = make()
    features = backend.capability().features
    assert {
        Feature.STREAM,
        Feature.STREAM_QUERY,
        Feature.EVENT,
        Feature.EVENT_TIMING,
        Feature.ASYNC_COPY,
        Feature.PINNED_MEMORY,
        Feature.KV_POOL,
        Feature.KV_HOST_POOL,
        Feature.COLLECTIVE,
        Feature.GRAPH,
    } <= features
    assert not {Feature.STREAM_PRIORITY, Feature.KV_EXPORT} & features
    assert backend.comm_backend == "hccl"
    with pytest.raises(CapabilityError, match="graph"):
        make(CHIPS["310P"]).capture(lambda x: x, {"x": backend.empty((1,), DType.FP32)})


def test_streams_are_those_of_torch_npu(make, machine):
    backend = make()
    stream = backend.create_stream()
    assert isinstance(stream.native, machine.npu.Stream)
    with pytest.raises(RuntimeError, match="priority_range"):
        stream.native.priority_range()
    simdev.module.synchronize(0)
    with stream:
        simdev.module.sleep(50)
    assert not stream.query()
    stream.synchronize()
    assert stream.query()


def test_names_of_the_device_module_are_those_of_torch_npu(machine):
    assert npu.mem_get_info is machine.npu.mem_get_info
    with pytest.raises(AttributeError):
        _ = npu.nothing_of_this_name


def test_kv_blocks_have_128_tokens(make):
    backend = make()
    assert backend.capability().kv.block_sizes == (128,)
    assert backend.capability().kv.index_dtype is DType.INT32
    with pytest.raises(CapabilityError, match=r"block_size 16.*128"):
        backend.kv_pool(replace(LAYOUT, block_size=16), 2)
    block = backend.kv_block_alloc(130, "fp16")
    assert block.num_tokens == 130
    backend.kv_block_free(block)
    chosen = replace(LAYOUT, num_layers=1)
    assert make(config={"kv_layout": chosen}).config.kv_layout == chosen


def test_pools_of_every_order_and_packing(make):
    backend = make()
    assert [item for item in pool_findings(backend) if not item.passed] == []


def test_copies_to_pinned_host_pools_return_before_they_are_done(make):
    backend = make()
    device, host = backend.kv_pool(LAYOUT, 4), backend.kv_pool(LAYOUT, 4, "host")
    assert host.key_cache(0).is_pinned()
    ids = device.alloc(2)
    for layer in range(2):
        device.key_cache(layer).fill_(3)
        device.value_cache(layer).fill_(4)
    plan, stream = backend.kv_copy_plan(device, host), backend.create_stream()
    simdev.module.synchronize(0)
    with stream:
        simdev.module.sleep(1000)
    began = time.monotonic()
    transfer = plan.copy(ids, host.alloc(2), stream)
    assert time.monotonic() - began < 0.5
    assert not transfer.done()
    transfer.wait(10)
    assert float(host.value_cache(1)[:2].float().mean()) == 4


@pytest.mark.parametrize(
    ("static", "said"),
    [
        ({"dtype": "fp32"}, "fp16 and bf16, not fp32"),
        ({"block_size": 16}, "blocks of 128, not 16"),
        ({"window": 64}, "windows"),
        ({"softcap": 2.0}, "softcap"),
        ({"has_sinks": True}, "sinks"),
        ({"mode": "ragged_prefill", "head_dim": 64}, "heads of 128, not 64"),
        ({"mode": "paged_decode", "head_dim": 40}, "multiple of 16"),
        ({"num_heads": 130, "num_kv_heads": 2}, "64 query heads"),
        ({"head_dim": 512, "num_kv_heads": 128}, "65535"),
    ],
)
def test_what_the_fused_operator_does_not_take_is_said_and_served(make, static, said):
    explained = make().kernels.explain("attention", **static)
    assert explained.chosen == "torch"
    (fused,) = [item for item in explained.candidates if item.name == "npu"]
    assert any(said in reason for reason in fused.reasons)


def test_a_310p_without_nnal_attends_in_plain_torch(make, monkeypatch):
    monkeypatch.setattr("sagellm_backend.ascend.attention_310p.has_nnal", lambda: False)
    explained = make(CHIPS["310P"]).kernels.explain("attention", dtype="fp16")
    assert explained.chosen == "torch"
    assert "NNAL is not set up" in explained.candidates[0].reasons[0]


def test_a_kernel_resolved_without_statics_serves_what_the_vendor_does_not(make):
    backend = make()
    kernel, target = backend.get_kernel("attention"), operation("attention")
    for case in attention_cases(DType.FP16):
        arguments = target.bind((), case)
        CALLED.clear()
        out = kernel(**{name: to_native(backend, value) for name, value in arguments.items()})
        assert out.shape == arguments["q"].shape
        plain = case.label in ("decode-window", "prompt-softcap", "decode-sinks", "decode-shared")
        assert bool(CALLED) == (not plain), case.label


def test_a_device_that_is_busy_is_an_error_when_a_provider_is_made(make, machine):
    def fail(device=None):
        raise RuntimeError("NPU function error: aclrtSetDevice, error code is 507033")

    machine.npu.synchronize = fail
    with pytest.raises(UnavailableError, match=r"cannot use simdev:0.*busy") as caught:
        startup.create_ascend_backend()
    assert "npu-smi info" in caught.value.hint


def test_a_310p_decodes_more_sequences_than_the_vendor_takes_in_plain_torch(make):
    backend = make(CHIPS["310P"])
    kernel, batch = backend.get_kernel("attention", dtype="fp16"), 2001
    cache = backend.from_numpy(np.ones((2, 128, 1, 16), np.float16))
    q = backend.from_numpy(np.ones((batch, 1, 16), np.float16))
    for size, called in ((batch, False), (2, True)):
        metadata = backend.attention_metadata([1] * size, [1] * size, [[0]] * size, 128)
        CALLED.clear()
        out = kernel(q[:size], cache, cache, metadata, scale=1.0)
        assert ("atb::_npu_paged_attention" in CALLED) is called
        assert (backend.to_numpy(out) == 1).all()
