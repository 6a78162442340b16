"""Weights in FRACTAL_NZ on the 310P: cast once, kept with the weight, dropped when it changes."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from examination import CHIPS, linear_findings, mutant
from npu_l0 import formats
from npu_l0.library import CALLED

from sagellm_backend.ascend import linear, provider

CAST = "npu::npu_format_cast"


@pytest.fixture
def backend(make):
    return make(CHIPS["310P"])


def array(backend, *shape, dtype="f2"):
    return backend.from_numpy(np.ones(shape, dtype))


def casts(backend, weight, *, rows=2, calls=1, **static):
    """How many casts some calls make."""
    kernel = backend.get_kernel("linear", **static)
    x = backend.from_numpy(np.ones((rows, weight.shape[1]), "f2")).to(weight.dtype)
    made = 0
    for _ in range(calls):
        CALLED.discard(CAST)
        kernel(x, weight)
        made += CAST in CALLED
    return made


def reserved(backend):
    stats = backend.memory_stats()
    return stats["reserved_bytes"] - stats["allocated_bytes"]


def test_the_second_use_casts_and_later_ones_find_the_copy(backend):
    weight = array(backend, 16, 32)
    assert [casts(backend, weight) for _ in range(4)] == [0, 1, 0, 0]


def test_results_are_those_of_the_weight_as_it_is(backend):
    found = list(linear_findings(backend))
    assert len(found) == 3
    assert [item for item in found if not item.passed] == []


def test_copies_are_reserved_memory_in_whole_tiles_and_go_with_the_weight(backend):
    weight = array(backend, 17, 32)
    assert casts(backend, weight, calls=3) == 1
    assert reserved(backend) == 32 * 32 * 2
    del weight
    gc.collect()
    assert reserved(backend) == 0


def test_they_go_when_the_weight_is_written_to(backend):
    weight = array(backend, 16, 32)
    casts(backend, weight, calls=2)
    weight.mul_(3)
    assert casts(backend, weight) == 0
    assert reserved(backend) == 0
    assert casts(backend, weight, calls=2) == 1


def test_they_go_at_clear_cache_and_when_the_provider_is_closed(backend):
    weight, x = array(backend, 16, 32), array(backend, 2, 32)
    kernel = backend.get_kernel("linear")
    for leave in (backend.clear_cache, backend.close):
        casts(backend, weight, calls=2)
        assert reserved(backend) == 16 * 32 * 2
        leave()
        assert reserved(backend) == 0
    for _ in range(3):
        kernel(x, weight)
    assert reserved(backend) == 0


def test_what_the_caller_has_cast_is_taken_as_it_is(backend):
    weight = torch.ops.npu.npu_format_cast(array(backend, 16, 32), formats.NZ)
    assert casts(backend, weight, calls=3) == 0
    assert reserved(backend) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.float(),
        lambda w: w[:1],
        lambda w: w[:, :1].contiguous(),
        lambda w: w[:, ::2],
        lambda w: w.detach().requires_grad_(),
    ],
    ids=["fp32", "row", "column", "strided", "gradient"],
)
def test_weights_that_stay_as_they_are(backend, change):
    weight = change(array(backend, 16, 32))
    assert casts(backend, weight, calls=3) == 0


def test_a_gradient_that_is_not_asked_for_is_no_hindrance(backend):
    weight = torch.nn.Parameter(array(backend, 16, 32))
    with torch.no_grad():
        assert casts(backend, weight, calls=3) == 1


def test_tensors_of_inference_mode_count_no_writes_and_stay():
    assert linear._is_castable(torch.ones(16, 32, dtype=torch.float16))
    with torch.inference_mode():
        assert not linear._is_castable(torch.ones(16, 32, dtype=torch.float16))


def test_a_copy_that_would_leave_too_little_memory_is_not_made(make):
    backend = make(CHIPS["310P"], {"memory_limit": 1 << 20})
    weight = array(backend, 512, 512)
    assert casts(backend, weight, calls=3) == 0
    assert casts(backend, array(backend, 16, 32), calls=3) == 1


def test_a_cast_for_which_there_is_no_memory_leaves_the_weight(backend, monkeypatch):
    weight = array(backend, 16, 32)

    def exhaust(*args):
        raise torch.OutOfMemoryError("NPU out of memory.")

    casts(backend, weight)
    with monkeypatch.context() as change:
        change.setattr(torch.ops.npu, "npu_format_cast", exhaust)
        assert casts(backend, weight) == 0
    assert reserved(backend) == 0
    assert casts(backend, weight, calls=2) == 0


@pytest.mark.parametrize("chip", ["A2", "A3", "910", "950", "unknown"])
def test_other_families_keep_their_format(make, chip):
    backend = make(CHIPS[chip])
    assert casts(backend, array(backend, 16, 32), calls=3) == 0
    assert not formats.CONFIG.allow_internal_format


def test_internal_formats_are_allowed_where_they_are_used(backend):
    assert formats.CONFIG.allow_internal_format


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight.detach(), FRACTAL_NZ", "weight.detach(), 2"),
        ("return self._weight() is weight and self._seen == _identity(weight)", "return True"),
        ("return version, ", "return "),
        (
            "npu_format_cast(weight.detach(), FRACTAL_NZ)",
            "npu_format_cast(weight.detach(), acl=29)",
        ),
        ("npu_format_cast(weight.detach()", "npu_format_cast(weight.detach().T"),
    ],
)
def test_a_mistake_is_caught(make, monkeypatch, old, new):
    monkeypatch.setattr(provider, "NZLinear", mutant(linear, (old, new)).NZLinear)
    try:
        passed = all(item.passed for item in linear_findings(make(CHIPS["310P"])))
    except Exception:  # noqa: BLE001 - it is what was found
        passed = False
    assert not passed
