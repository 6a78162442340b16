"""Paged attention by the compiled kernel: the reference's numbers, and plain torch where it fits not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_backend import CPUBackendProvider
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cpu import attention as compiled
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.torch_support import attention as plain
from sagellm_backend.torch_support.misuse import MisuseError

NAN = float("nan")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


class Step:
    """Random queries and caches; NaN in every slot that no sequence has."""

    def __init__(self, query, kv, heads=4, kv_heads=2, dim=64, size=16, dtype=DTYPES[0], order=0):
        self.query, self.kv, self.scale = query, kv, dim**-0.5
        random = torch.Generator().manual_seed(sum(kv) + dim)
        counts = [-(-length // size) for length in kv]
        blocks = torch.randperm(sum(counts) + 2, generator=random).split([*counts, 2])[:-1]
        self.metadata = AttentionMetadata.build(query, kv, [row.tolist() for row in blocks], size)
        self.q = torch.randn(sum(query), heads, dim, generator=random).mul_(3).to(dtype)
        shape = (sum(counts) + 2, size, kv_heads, dim)
        self.k, self.v = (layout(shape, dtype, kind) for kind in memory(order))
        for row, length in zip(blocks, kv, strict=True):
            place = torch.arange(length)
            for cache in (self.k, self.v):
                values = torch.randn(length, kv_heads, dim, generator=random)
                cache[row[place // size], place % size] = values.to(dtype)

    def __call__(self, attend=compiled.attention, **options):
        return attend(self.q, self.k, self.v, self.metadata, scale=self.scale, **options)

    def reference(self, **options):
        arrays = (each.double().numpy() for each in (self.q, self.k, self.v))
        found = OPERATIONS["attention"].reference(
            *arrays, self.metadata, scale=self.scale, **options
        )
        return torch.from_numpy(np.asarray(found))

    def sinks(self, spread):
        """A sink for each head, some below all scores and some above; ``None`` of ``None``."""
        return None if spread is None else torch.linspace(-spread, spread, self.q.shape[1])

    def check(self, **options):
        found, expected = self(**options), self.reference(**options)
        assert found.dtype is self.q.dtype
        bound = ROUNDING[found.dtype] * expected.abs().clamp(min=1)
        assert ((found.double() - expected).abs() <= 2 * bound).all()
        return found


def memory(order):
    """How keys and values lie: separate in both orders, and interleaved in each block."""
    return [("NHD", None), ("HND", None)][order : order + 1] * 2 if order < 2 else ["both"] * 2


def layout(shape, dtype, kind):
    blocks, size, heads, dim = shape
    if kind == "both":
        return torch.full((blocks, 2, size, heads, dim), NAN).to(dtype)[:, 1]
    if kind[0] == "HND":
        return torch.full((blocks, heads, size, dim), NAN).to(dtype).transpose(1, 2)
    return torch.full(shape, NAN).to(dtype)


@settings(max_examples=80, deadline=None)
@given(
    kv=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    new=st.integers(1, 12),
    kv_heads=st.integers(1, 3),
    share=st.integers(1, 9),
    dim=st.sampled_from([1, 5, 16, 33, 64, 80, 96, 128, 256]),
    size=st.sampled_from([1, 3, 16, 128]),
    dtype=st.sampled_from(DTYPES),
    order=st.integers(0, 2),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 100),
    softcap=st.none() | st.floats(0.5, 30.0),
    sinks=st.sampled_from([None, 1.0, 60.0]),
)
def test_random_steps_follow_the_reference(
    kv, new, kv_heads, share, dim, size, dtype, order, causal, window, softcap, sinks
):
    query = [min(new, length) for length in kv]
    step = Step(query, kv, share * kv_heads, kv_heads, dim, size, dtype, order)
    step.check(causal=causal, window=window, softcap=softcap, sinks=step.sinks(sinks))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query", [1, 3])
def test_long_sequences_are_split_and_merged_alike_by_any_number_of_threads(dtype, query):
    step = Step([query] * 2, [2500, 300], dtype=dtype)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found += [step.check(sinks=step.sinks(5.0)), step.check(window=1100)]
    torch.set_num_threads(before)
    for other in (2, 4):
        assert torch.equal(found[0], found[other])
        assert torch.equal(found[1], found[other + 1])


def test_a_window_reads_no_key_outside_of_it():
    step = Step([1], [900])
    expected = step(window=100)
    first = int(step.metadata.block_table[0, 0])
    step.k[first], step.v[first] = NAN, NAN
    assert torch.equal(step(window=100), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan_go_where_the_reference_has_them(dtype):
    for place, value in (("k", NAN), ("v", NAN), ("v", torch.inf), ("k", torch.inf)):
        step = Step([1], [70], dtype=dtype)
        block = int(step.metadata.block_table[0, 4])
        getattr(step, place)[block, 3, 0, 0] = value
        with np.errstate(invalid="ignore"):
            expected = step.reference()
        found = step().double()
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert torch.equal(found[:, 2:].isnan(), torch.zeros(1, 2, 64, dtype=torch.bool))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 30.0, 1e3])
def test_scores_far_beyond_the_cap_on_either_side_have_its_value(dtype, size):
    step = Step([1], [70], 1, 1, 1, dtype=dtype)  # of one product, which no sum makes inexact
    step.q.mul_(size)
    step.check(softcap=0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_lost_where_all_weights_but_one_vanish(dtype):
    step = Step([1], [200], 2, 2, 64, dtype=dtype)
    step.k.nan_to_num_(0.0).mul_(0)
    block, slot = int(step.metadata.block_table[0, 7]), 5
    step.k[block, slot] = step.q[0].sign() * 60
    assert torch.equal(step()[0], step.v[block, slot])


def test_a_sequence_does_not_depend_on_its_neighbours():
    step = Step([1, 1, 1], [40, 300, 7])
    alone = AttentionMetadata.build([1], [300], step.metadata.block_table[1:2], 16)
    found = compiled.attention(step.q[1:2], step.k, step.v, alone, scale=step.scale)
    assert torch.equal(found, step()[1:2])


def test_queries_within_a_wider_array_are_read_where_they_lie():
    step = Step([2, 1], [40, 17])
    wide = torch.randn(3, 12, 64)
    wide[:, 2:6] = step.q
    expected = step()
    step.q = wide[:, 2:6]
    assert torch.equal(step(), expected)


def test_the_work_of_a_step_is_cut_once_for_all_layers():
    step = Step([1], [40])
    step(), step(), step(window=8)
    plans = [key for key in step.metadata.native if key[0] == compiled.PLAN]
    assert len(plans) == 2
    assert plain.BLOCKS not in step.metadata.native


@pytest.mark.parametrize(
    "wrong",
    [
        {"q": torch.zeros(1, 3, 64)},
        {"q": torch.zeros(2, 4, 64)},
        {"q": torch.zeros(1, 4, 32)},
        {"q": torch.zeros(1, 4, 64).bfloat16()},
        {"scale": 0.0},
        {"window": 0},
        {"softcap": -1.0},
        {"v": torch.zeros(5, 16, 1, 64)},
        {"k": torch.zeros(1, 16, 2, 64), "v": torch.zeros(1, 16, 2, 64)},
    ],
)
def test_misuse_is_that_of_plain_torch(wrong):
    step = Step([1], [40])
    given = {"q": step.q, "k": step.k, "v": step.v, "scale": 0.1, **wrong}
    q, k, v = (given.pop(name) for name in "qkv")
    errors = []
    for attend in (plain.attention, compiled.attention):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - alike, whatever it is
            attend(q, k, v, step.metadata, **given)
        errors.append(type(caught.value))
    assert errors[0] is errors[1]
    assert issubclass(errors[0], (MisuseError, InvalidArgumentError))


class TestLeftToTorch:
    @pytest.fixture(autouse=True)
    def without(self, monkeypatch):
        """A kernel that may not be called."""

        class Missing:
            def function(self):
                return None

        monkeypatch.setattr(compiled, "KERNELS", dict.fromkeys(DTYPES, Missing()))

    def test_where_nothing_is_compiled(self):
        Step([1, 4], [40, 9]).check(window=6)
        with CPUBackendProvider() as backend:
            step = Step([1], [40])
            kernel = backend.get_kernel("attention")
            found = kernel(step.q, step.k, step.v, step.metadata, scale=step.scale)
        assert torch.allclose(found.double(), step.reference(), atol=1e-5)


def test_what_the_kernel_is_not_for_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(compiled, "_run", None)
    step = Step([1], [40])
    step.q.requires_grad_()
    step().sum().backward()
    assert step.q.grad is not None
    step = Step([1], [40])
    step.q = torch.randn(1, 4, 128)[..., ::2]
    step.check()
    ragged = AttentionMetadata.build([3])
    q = torch.randn(3, 2, 8)
    found = compiled.attention(q, q, q, ragged, scale=1.0)
    assert torch.equal(found, plain.attention(q, q, q, ragged, scale=1.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_prompts_are_torchs_and_short_ones_beside_decodes_the_kernels(dtype, monkeypatch):
    runs, run = [], compiled._run
    monkeypatch.setattr(compiled, "_run", lambda *given: runs.append(1) or run(*given))
    most = compiled.MOST_QUERIES[dtype]
    Step([most + 1], [most + 40], dtype=dtype).check()
    assert not runs
    Step([most, 1], [most + 40, most + 40], dtype=dtype).check()
    assert runs
