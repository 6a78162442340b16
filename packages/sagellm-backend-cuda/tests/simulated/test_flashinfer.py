"""flashinfer's kernels through the provider: its real signatures, made-up kernels, real numbers."""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simdev
from fake_cuda import backend as fake
from fake_cuda import flashinfer as library
from fake_cuda.flashinfer_cases import OFFERED, decode, findings
from fake_cuda.flashinfer_snapshot import signatures

from sagellm_backend import DType, KVLayout
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cuda import attention, flashinfer_kernels, flashinfer_plans, provider
from sagellm_backend.cuda.asked import VARIABLE
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

MODULE = simdev.module


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setenv(VARIABLE, "flashinfer")
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    monkeypatch.setattr(flashinfer_plans, "WORKSPACE", 1 << 20)
    monkeypatch.setattr(provider, "WORKSPACE", 1 << 20)
    monkeypatch.setattr(fake.Simulated.module, "get_device_capability", lambda device: (9, 0))
    # torch's flash kernels are for cards alone.
    monkeypatch.setattr(attention, "_varlen_attn", None)
    library.CALLED.clear()


@pytest.fixture
def backend(asked):
    with fake.Simulated() as made:
        yield made


def called(name):
    return [call for word, call in library.CALLED if word == name]


def test_every_call_is_bound_and_right(backend):
    assert [item for item in findings(backend) if item[1]] == []
    assert {name for name, _ in library.CALLED} == set(library.SIGNATURES)


def test_it_is_chosen_within_its_limits_and_says_why_not(backend):
    for name in OFFERED:
        assert backend.explain(name, dtype="bf16").chosen == "flashinfer"
        assert backend.explain(name, dtype="fp32").chosen == "torch"
    for statics, said in (
        ({"head_dim": 96}, "head_dim 96"),
        ({"dtype": "fp32"}, "not fp32"),
        ({"mode": "ragged_prefill"}, "packed keys"),
    ):
        (candidate,) = [
            one
            for one in backend.explain("attention", **statics).candidates
            if one.name == "flashinfer"
        ]
        assert said in " ".join(candidate.reasons)
    reasons = flashinfer_kernels.rope_limits(DType.FP16, 64, 24)
    assert reasons == ["flashinfer rotates multiples of 32 dimensions, not 24"]


PLAN = "BatchDecodeWithPagedKVCacheWrapper.plan"
MAKE = "BatchDecodeWithPagedKVCacheWrapper.__init__"


def test_a_step_is_planned_once_for_all_layers(backend):
    kernel, q, k, v, metadata = decode(backend)
    for _ in range(3):
        kernel(q, k, v, metadata, scale=0.1)
    assert len(called(PLAN)) == 1
    kernel(q, k, v, metadata, scale=0.1, window=4)
    assert len(called(PLAN)) == 2
    with backend.create_stream():
        kernel(q, k, v, metadata, scale=0.1)
    assert len(called(PLAN)) == len(called(MAKE)) == 3


def test_wrappers_are_used_again_when_their_step_is_gone(backend):
    kernel, q, k, v, metadata = decode(backend)
    kernel(q, k, v, metadata, scale=0.1)
    del metadata
    gc.collect()
    before = backend.memory_stats()["other_bytes"]
    for lengths in ((3, 30), (8, 9)):
        step = AttentionMetadata.build([1, 1], lengths, [[0, 1], [2, 3]], 16)
        kernel(q, k, v, step, scale=0.1)
        del step
        gc.collect()
    assert (len(called(PLAN)), len(called(MAKE))) == (3, 1)
    assert backend.memory_stats()["other_bytes"] == before
    kept = [AttentionMetadata.build([1, 1], (3, 30), [[0, 1], [2, 3]], 16) for _ in range(2)]
    for step in kept:
        kernel(q, k, v, step, scale=0.1)
    assert len(called(MAKE)) == 2
    workspaces = {call["float_workspace_buffer"].data_ptr() for call in called(MAKE)}
    assert len(workspaces) == 1


def test_a_plan_is_copied_before_its_host_memory_is_written_again(backend, monkeypatch):
    done = []

    class Event(MODULE.Event):
        def synchronize(self):
            done.append(len(called(PLAN)))
            super().synchronize()

    monkeypatch.setattr(backend.module, "Event", Event)
    kernel, q, k, v, metadata = decode(backend)
    kernel(q, k, v, metadata, scale=0.1)
    assert not done
    del metadata
    gc.collect()
    step = AttentionMetadata.build([1, 1], (3, 30), [[0, 1], [2, 3]], 16)
    kernel(q, k, v, step, scale=0.1)
    assert done == [1]


def test_what_is_captured_follows_new_lengths(backend):
    kernel, q, k, v, metadata = decode(backend)
    graph = backend.capture(
        lambda metadata: kernel(q, k, v, metadata, scale=0.1), {"metadata": metadata}
    )
    planned = len(called(PLAN))
    other = AttentionMetadata.build([1, 1], (3, 30), [[1, 0], [2, 3]], 16)
    graph.update({"metadata": other})
    got = backend.to_numpy(graph.replay()).astype(np.float32)
    assert len(called(PLAN)) == planned
    wanted = backend.to_numpy(kernel(q, k, v, other, scale=0.1)).astype(np.float32)
    np.testing.assert_allclose(got, wanted, rtol=2**-7, atol=2**-7)


def test_pools_of_every_layout_are_read(backend):
    for order in ("NHD", "HND"):
        for packing in ("separate", "packed"):
            layout = KVLayout(1, 2, 64, 16, DType.BF16, order=order, packing=packing)
            pool = backend.kv_pool(layout, 4)
            kernel, q, k, v, metadata = decode(backend)
            pool.key_cache(0).copy_(k)
            pool.value_cache(0).copy_(v)
            wanted = backend.to_numpy(kernel(q, k, v, metadata, scale=0.1))
            caches = pool.key_cache(0), pool.value_cache(0)
            before = len(called("BatchDecodeWithPagedKVCacheWrapper.run"))
            got = backend.to_numpy(kernel(q, *caches, metadata, scale=0.1))
            assert got.tobytes() == wanted.tobytes()
            assert len(called("BatchDecodeWithPagedKVCacheWrapper.run")) == before + 1


class TestAsking:
    def test_without_a_word_torch_s_kernels_are_taken(self, monkeypatch):
        monkeypatch.delenv(VARIABLE, raising=False)
        monkeypatch.setitem(sys.modules, "flashinfer", None)
        with fake.Simulated() as backend:
            names = {one.name for one in backend.explain("rope").candidates}
            assert names == {"torch"}

    @pytest.mark.parametrize("word", ["flash", "1"])
    def test_another_word_is_refused(self, word):
        with pytest.raises(InvalidArgumentError, match=word):
            flashinfer_kernels.load({VARIABLE: word})

    def test_a_package_that_is_missing_is_named_with_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "flashinfer", None)
        with pytest.raises(UnavailableError) as caught:
            flashinfer_kernels.load({VARIABLE: "flashinfer"})
        assert "sagellm-backend-cuda[flashinfer]" in caught.value.hint

    def test_an_older_card_is_refused(self, asked, monkeypatch):
        monkeypatch.setattr(fake.Simulated.module, "get_device_capability", lambda device: (7, 5))
        with pytest.raises(UnavailableError, match="has 7.5"):
            fake.Simulated()


def mutant(module, old, new):
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert old in source, f"{old!r} is not in {module.__name__}"
    made = ModuleType("mutant")
    sys.modules.setdefault("mutant", made)
    exec(compile(source.replace(old, new), module.__file__, "exec"), made.__dict__)
    return made


MISTAKES = [
    (flashinfer_kernels, "eps=eps", "epsilon=eps"),
    (flashinfer_kernels, 'is_neox=style == "neox"', 'is_neox=style != "neox"'),
    (flashinfer_kernels, "q.flatten(1), k.flatten(1), size", "q.flatten(1), k.flatten(1), 1"),
    (flashinfer_kernels, "k.stride() == v.stride()", "True"),
    (flashinfer_kernels, "x.dtype in _HALF and", ""),
    (flashinfer_kernels, "(q, (k, v))", "(q, (v, k))"),
    (flashinfer_plans, '"sm_scale": form.scale,', ""),
    (flashinfer_plans, "form.window - 1", "form.window"),
    (flashinfer_plans, "form.heads // form.kv_heads >= 4", "False"),
    (flashinfer_plans, "causal=form.causal", "causal=True"),
    (flashinfer_plans, "(pages - 1) * size,", "pages * size,"),
    (flashinfer_plans, "table[used]", "table.ravel()"),
    (
        flashinfer_plans,
        "indices = memory.to_device(step.indices, kind.device)",
        "indices = step.indices",
    ),
    (flashinfer_plans, "tensor.pin_memory()", "tensor"),
    (flashinfer_plans, "astype(np.int32)", "astype(np.int64)"),
    (flashinfer_plans, '"q_data_type": form.dtype,', ""),
    (flashinfer_plans, '"logits_soft_cap": form.softcap,', ""),
]


@pytest.mark.parametrize(("module", "old", "new"), MISTAKES, ids=[item[1] for item in MISTAKES])
def test_a_mistake_is_caught(asked, monkeypatch, module, old, new):
    made = mutant(module, old, new)
    if module is flashinfer_plans:
        made.WORKSPACE = 1 << 20
        monkeypatch.setattr(provider, "Plans", made.Plans)
        monkeypatch.setattr(flashinfer_kernels, "Form", made.Form)
    else:
        monkeypatch.setattr(provider, "flashinfer_kernels", made)
    with fake.Simulated() as backend:
        assert [item for item in findings(backend) if item[1]]


@pytest.mark.skipif(
    not importlib.util.find_spec("flashinfer"), reason="flashinfer is not installed"
)
def test_the_signatures_are_those_of_the_installed_flashinfer():
    folder = Path(importlib.util.find_spec("flashinfer").origin).parent
    assert list(signatures(folder)) == library.LINES
