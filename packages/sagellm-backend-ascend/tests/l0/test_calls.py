"""No call of a vendor's operator is left unexercised, and mistakes in calls are caught."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examination import (
    CHIPS,
    attention_findings,
    graph_findings,
    linear_findings,
    mutant,
    operation_findings,
    pool_findings,
)
from npu_l0.library import CALLED, SCHEMAS

from sagellm_backend import DType
from sagellm_backend.ascend import attention, attention_310p, kernels, provider, startup

SOURCES = Path(kernels.__file__).parent
NAMED = re.compile(r"torch\.ops\.(\w+)\.(\w+(?:\.\w+)?)")
FUSED = ("rms_norm", "add_rms_norm", "silu_and_mul", "rope", "kv_write", "linear", "attention")
A2_FUSED = tuple(name for name in FUSED if name != "linear")


def calls_in(folder):
    """The operators ``torch.ops.<namespace>.<name>``, or overloads, that a folder's sources name."""
    found = set()
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        inner = {id(node.value) for node in nodes}
        for node in nodes:
            match = NAMED.fullmatch(ast.unparse(node))
            if match and id(node) not in inner:
                found.add(f"{match[1]}::{match[2]}")
    return found


def findings(backend, module=None):
    """Everything, or what a module of ours has to do with."""
    if module is kernels:
        return [*operation_findings(backend, FUSED[:-1]), *pool_findings(backend)]
    found = [*operation_findings(backend, FUSED[-1:]), *attention_findings(backend)]
    return found if module else [*found, *findings(backend, kernels)]


def test_every_call_is_bound_to_its_schema_and_exercised(make):
    named = calls_in(SOURCES)
    assert named == set(SCHEMAS)
    CALLED.clear()
    for version in CHIPS.values():
        backend = make(version)
        found = [*findings(backend), *graph_findings(backend), *linear_findings(backend)]
        assert [item for item in found if not item.passed] == []
    assert sorted(named - CALLED) == []


@pytest.mark.parametrize(
    ("chip", "wanted"),
    [
        ("A2", A2_FUSED),
        ("A3", A2_FUSED),
        ("310P", ("rms_norm", "add_rms_norm", "silu_and_mul", "linear", "attention")),
        ("910", ()),
        ("950", ()),
        ("unknown", ()),
    ],
)
def test_which_chip_takes_which_operators(make, chip, wanted):
    backend = make(CHIPS[chip])
    chosen = {name for name in FUSED if backend.kernels.explain(name, dtype="fp16").chosen == "npu"}
    assert chosen == set(wanted)


_TABLE = '"block_table": step.prepare(metadata, q.device).table'

A2_MISTAKES = [
    (kernels, "epsilon=eps", "eps=eps", "unexpected|unknown|argument"),
    (kernels, "npu_rms_norm(x, weight", "npu_rms_norm(weight, x", ""),
    (kernels, ".clamp(min=0).to(torch.int32)", ".clamp(min=0).long()", "slot_mapping is not int32"),
    (kernels, ".clamp(min=0).to", ".to", "slot outside"),
    (kernels, 'cache_mode="Norm"', 'cache_mode="PA_NZ"', "caches are ND"),
    (kernels, "torch.where(none_kept", "torch.where(none_kept & False", ""),
    (kernels, "key_cache.is_contiguous() and value_cache.is_contiguous()", "True", ""),
    (kernels, '"neox": "half"', '"neox": "interleave"', ""),
    (kernels, ":size].float()", ":size]", "dtypes differ"),
    (kernels, "dim=-1", "dim=0", ""),
    (attention, _TABLE, _TABLE + ".long()", "not 2-D int32"),
    (attention, _TABLE, '"block_table": None', "no block_table"),
    (attention, "block_size not in (None, BLOCK_SIZE)", "False", "blocks have 16 tokens"),
    (attention, "lengths_of(metadata).kv", "lengths_of(metadata).cu_kv", ""),
    (attention, "lengths.kv if paged else lengths.cu_kv", "lengths.kv", "not cumulative|not that"),
    (attention, "lengths.kv if paged else lengths.cu_kv", "lengths.cu_kv", ""),
    (attention, ".triu(1)", ".tril()", "no upper triangle"),
    (attention, "_NO_MASK, _RIGHT_DOWN_CAUSAL = 0, 3", "_NO_MASK, _RIGHT_DOWN_CAUSAL = 0, 2", "2"),
    (attention, "dtype not in (None, *_HALF)", "False", "neither fp16 nor bf16"),
    (attention, "window is not None", "False", ""),
    (attention, "lengths_of(metadata).blocks <= k.shape[0]", "True", "fewer blocks"),
    (attention, "head_dim != _PREFILL_DIM", "False", "heads of"),
    (attention, '"num_key_value_heads": k.shape[2]', '"num_key_value_heads": 0', ""),
    (attention, '"scale": float(scale),', "", ""),
]

MISTAKES_310P = [
    (attention_310p, ", workspace=workspace", "", "no workspace"),
    (attention_310p, "FRACTAL_NZ)", "2)", "format 2"),
    (attention_310p, "torch.from_numpy(metadata.kv_lens.copy())", "now.kv_lens", "no host int32"),
    (attention_310p, "dtype=torch.int32, device", "device", "not int32 per batch"),
    (attention_310p, "-x.shape[0] % TILE", "0", "not aligned"),
    (attention_310p, ".triu(1)", ".triu(2)", ""),
    (attention_310p, ".transpose(1, 2).contiguous()", ".contiguous()", "tiles of 16"),
    (attention_310p, "block_size not in (None, BLOCK_SIZE)", "False", "tiles of 16"),
    (kernels, "silu_and_mul(x.float())", "silu_and_mul(x)", "takes fp32"),
    (kernels, "(add_then_rms_norm, half", "(add_rms_norm, half", "no such operator"),
]


@pytest.mark.parametrize(
    ("version", "module", "old", "new", "said"),
    [(222, *item) for item in A2_MISTAKES] + [(202, *item) for item in MISTAKES_310P],
)
def test_a_mistake_is_caught(make, monkeypatch, version, module, old, new, said):
    word = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(provider, word, mutant(module, (old, new)))
    failed = [item for item in findings(make(version), module) if not item.passed]
    assert failed
    if said:
        assert any(_matches(said, item.detail) for item in failed), failed[0].detail


def _matches(said, detail):
    return any(part in detail for part in said.split("|"))


def test_bf16_on_a_310p_is_caught_behind_the_provider_too(make, monkeypatch):
    believed = replace(startup.family_of(202), dtypes=(DType.FP32, DType.FP16, DType.BF16))
    monkeypatch.setattr(startup, "family_of", lambda version, name="": believed)
    monkeypatch.setattr(kernels, "half_limits", kernels.no_limits)
    offer = (kernels.rms_norm, kernels.no_limits)
    monkeypatch.setitem(kernels.KERNELS_310P, "rms_norm", offer)
    found = operation_findings(make(202), ["rms_norm"])
    failed = [item for item in found if not item.passed]
    assert {item.dtype for item in failed} == {"bf16"}
    assert any("is bf16" in item.detail for item in failed)


def test_arrays_of_the_host_do_not_reach_the_vendor(make):
    with pytest.raises(NotImplementedError, match="npu_swiglu"):
        torch.ops.npu.npu_swiglu(torch.ones(2, 4))
