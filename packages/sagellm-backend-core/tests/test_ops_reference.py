"""References against independent formulas, written as loops over scalars."""

import cmath
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops import operation
from sagellm_backend.ops.rope import rope_cache


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def run(name, *args, dtype="fp32", **kwargs):
    op = operation(name)
    arguments = op.bind(args, kwargs)
    op.check_values(arguments)
    results = op.run_reference(arguments, DType(dtype))
    return results[0] if len(results) == 1 else results


def f32(array):
    return np.asarray(array, np.float32)


def test_linear_multiplies_rows_of_the_weight(rng):
    x, w, b = f32(rng.normal(size=(2, 3))), f32(rng.normal(size=(4, 3))), f32(rng.normal(size=4))
    got = run("linear", x, w, b)
    for row in range(2):
        for out in range(4):
            want = math.fsum(float(x[row, i]) * float(w[out, i]) for i in range(3)) + float(b[out])
            assert got[row, out] == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(run("linear", x, w), got - b, rtol=1e-5, atol=1e-6)


def test_matmul_keeps_batches_apart(rng):
    a, b = f32(rng.normal(size=(2, 3, 4))), f32(rng.normal(size=(2, 4, 5)))
    got = run("matmul", a, b)
    for n in range(2):
        for row in range(3):
            for column in range(5):
                want = math.fsum(float(a[n, row, i]) * float(b[n, i, column]) for i in range(4))
                assert got[n, row, column] == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_embedding_copies_bits():
    table = np.array([[-0.0, np.nan], [np.inf, 1e-45]], np.float32)
    got = run("embedding", np.array([[1, 0]]), table)
    assert np.signbit(got[0, 1, 0])
    np.testing.assert_array_equal(got, table[[[1, 0]]])


def test_rms_norm_by_scalars(rng):
    x, w, eps = f32(rng.normal(size=(3, 5))), f32(rng.normal(size=5)), 0.1
    got = run("rms_norm", x, w, eps)
    for row in range(3):
        mean = math.fsum(float(value) ** 2 for value in x[row]) / 5
        for i in range(5):
            want = float(x[row, i]) / math.sqrt(mean + eps) * float(w[i])
            assert got[row, i] == pytest.approx(want, rel=1e-6)


def test_rms_norm_of_large_fp16_is_finite():
    x = np.full((1, 64), 300, np.float16)
    np.testing.assert_allclose(run("rms_norm", x, np.ones(64, np.float16), 1e-6, dtype="fp16"), 1.0)


def test_add_rms_norm_is_addition_then_norm(rng):
    bf16 = DType.BF16.numpy
    x, residual, w = (rng.normal(size=shape).astype(bf16) for shape in ((4, 32), (4, 32), (32,)))
    y, total = run("add_rms_norm", x, residual, w, 1e-6, dtype="bf16")
    np.testing.assert_array_equal(total, (f32(x) + f32(residual)).astype(bf16))
    np.testing.assert_array_equal(y, run("rms_norm", total, w, 1e-6, dtype="bf16"))


def test_layer_norm_by_scalars(rng):
    x = f32(1000 + rng.normal(size=(2, 7)))
    w, b, eps = f32(rng.normal(size=7)), f32(rng.normal(size=7)), 1e-5
    got = run("layer_norm", x, w, b, eps)
    for row in range(2):
        mean = math.fsum(map(float, x[row])) / 7
        variance = math.fsum((float(value) - mean) ** 2 for value in x[row]) / 7
        for i in range(7):
            want = (float(x[row, i]) - mean) / math.sqrt(variance + eps) * float(w[i]) + float(b[i])
            assert got[row, i] == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_silu_and_mul_has_the_gate_first():
    got = run("silu_and_mul", f32([[2.0, 0.0, 3.0, 5.0]]))
    np.testing.assert_allclose(got, [[2 / (1 + math.exp(-2)) * 3, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("value", [-8.0, -1.5, 0.0, 0.3, 7.0])
def test_gelu_by_scalars(value):
    exact = value * 0.5 * (1 + math.erf(value / math.sqrt(2)))
    assert run("gelu", f32([value]))[0] == pytest.approx(exact, rel=1e-6, abs=1e-14)
    inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
    tanh = 0.5 * value * (1 + math.tanh(inner))
    assert run("gelu", f32([value]), approximate="tanh")[0] == pytest.approx(tanh, rel=1e-6)


def test_softmax_by_scalars_and_bans():
    got = run("softmax", f32([[1.0, 2.0, -np.inf, 1e4 - 1e4]]))
    total = math.exp(1) + math.exp(2) + 1
    np.testing.assert_allclose(got, [[math.exp(1) / total, math.exp(2) / total, 0, 1 / total]])
    np.testing.assert_allclose(run("softmax", f32([[1e4, 1e4]])), 0.5)


def test_gptj_rope_multiplies_complex_numbers(rng):
    q, k = f32(rng.normal(size=(3, 2, 8))), f32(rng.normal(size=(3, 1, 8)))
    positions = np.array([0, 5, 2])
    rotated = run("rope", q, k, positions, rope_cache(6, 4, base=100.0), style="gptj")
    for got, x in zip(rotated, (q, k), strict=True):
        for token, head, pair in np.ndindex(3, x.shape[1], 2):
            turn = cmath.exp(1j * positions[token] * 100.0 ** (-2 * pair / 4))
            number = complex(*map(float, x[token, head, 2 * pair : 2 * pair + 2])) * turn
            assert got[token, head, 2 * pair] == pytest.approx(number.real, abs=1e-6)
            assert got[token, head, 2 * pair + 1] == pytest.approx(number.imag, abs=1e-6)
        np.testing.assert_array_equal(got[..., 4:], x[..., 4:])


def test_neox_rope_is_gptj_with_halves_for_pairs(rng):
    q, k = f32(rng.normal(size=(3, 2, 8))), f32(rng.normal(size=(3, 1, 8)))
    positions, table = np.array([1, 4, 3]), rope_cache(5, 6)
    paired = [0, 3, 1, 4, 2, 5, 6, 7]
    neox = run("rope", q, k, positions, table, style="neox")
    gptj = run("rope", q[..., paired], k[..., paired], positions, table, style="gptj")
    for one, other in zip(neox, gptj, strict=True):
        np.testing.assert_array_equal(one[..., paired], other)


@pytest.mark.parametrize("arguments", [(0, 4), (4, 3), (4, -2), (4.0, 4), (4, 4, 0.0), (4, 4, "1")])
def test_rope_cache_refuses(arguments):
    with pytest.raises(InvalidArgumentError):
        rope_cache(*arguments)


def test_kv_write_touches_its_slots_only(rng):
    key, value = f32(rng.normal(size=(3, 2, 4))), f32(rng.normal(size=(3, 2, 4)))
    caches = [np.full((3, 2, 2, 4), np.nan, np.float32) for _ in range(2)]
    got = run("kv_write", key, value, *caches, np.array([5, -1, 0]))
    for after, new in zip(got, (key, value), strict=True):
        flat = after.reshape(6, 2, 4)
        np.testing.assert_array_equal(flat[[5, 0]], new[[0, 2]])
        assert np.isnan(flat[1:5]).all()


def naive_attention(q, k, v, metadata, scale, causal, window, softcap, sinks):
    out = np.zeros(q.shape)
    for sequence, head in np.ndindex(metadata.batch, q.shape[1]):
        length, new = int(metadata.kv_lens[sequence]), int(metadata.query_lens[sequence])
        kv_head = head // (q.shape[1] // k.shape[-2])
        for i in range(new):
            row, position = int(metadata.cu_query[sequence]) + i, length - new + i
            weights, seen = [], []
            for t in range(length):
                if (causal and t > position) or (window and t <= position - window):
                    continue
                if metadata.block_table is None:
                    where = (int(metadata.cu_kv[sequence]) + t,)
                else:
                    block = metadata.block_table[sequence, t // metadata.block_size]
                    where = (int(block), t % metadata.block_size)
                logit = float(np.dot(q[row, head].astype(float), k[(*where, kv_head)])) * scale
                weights.append(softcap * math.tanh(logit / softcap) if softcap else logit)
                seen.append(v[(*where, kv_head)].astype(float))
            if sinks is not None:
                weights.append(float(sinks[head]))
                seen.append(np.zeros(q.shape[2]))
            powers = [math.exp(weight - max(weights)) for weight in weights]
            for power, value in zip(powers, seen, strict=True):
                out[row, head] += power / math.fsum(powers) * value
    return out


@settings(max_examples=60, deadline=None)
@given(
    lens=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=3),
    group=st.sampled_from([1, 2, 4, 8]),
    kv_heads=st.integers(1, 2),
    block_size=st.sampled_from([None, 1, 3, 4]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 2, 6]),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_is_the_naive_loop(
    lens, group, kv_heads, block_size, causal, window, softcap, with_sinks, seed
):
    rng = np.random.default_rng(seed)
    query, kv = [new for new, _ in lens], [new + old for new, old in lens]
    if block_size is None:
        metadata = AttentionMetadata.build(query, kv)
        shape = (sum(kv), kv_heads, 4)
    else:
        ids = iter(rng.permutation(48).tolist())
        table = [[next(ids) for _ in range(-(-length // block_size))] for length in kv]
        metadata = AttentionMetadata.build(query, kv, table, block_size)
        shape = (48, block_size, kv_heads, 4)
    q = f32(rng.normal(size=(sum(query), group * kv_heads, 4)))
    k, v = f32(rng.normal(size=shape)), f32(rng.normal(size=shape))
    sinks = f32(rng.normal(size=group * kv_heads)) if with_sinks else None
    options = {"scale": 0.7, "causal": causal, "window": window, "softcap": softcap, "sinks": sinks}
    got = run("attention", q, k, v, metadata, **options)
    want = naive_attention(q, k, v, metadata, **options)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_attention_refuses_caches_that_do_not_fit():
    metadata = AttentionMetadata.build([1], [5], [[0, 3]], 4)
    q = np.zeros((1, 2, 8), np.float32)
    for shape, words in (
        ((3, 4, 1, 8), "block_table has block 3, and the cache has 3 blocks"),
        ((4, 8, 1, 8), "the cache has blocks of 8, metadata of 4"),
        ((4, 4, 3, 8), "no multiple of the 3 heads"),
        ((4, 4, 1, 9), "d is 9 here and 8 in q"),
    ):
        cache = np.zeros(shape, np.float32)
        with pytest.raises(InvalidArgumentError, match=words):
            run("attention", q, cache, cache, metadata, scale=1.0)
    cache = np.zeros((4, 4, 1, 8), np.float32)
    with pytest.raises(InvalidArgumentError, match="q has 2 tokens, metadata has 1"):
        run("attention", np.zeros((2, 2, 8), np.float32), cache, cache, metadata, scale=1.0)


def test_greedy_takes_the_lowest_of_equals():
    assert run("greedy_sample", f32([[0, 2, 2], [-np.inf, -5, -np.inf]])).tolist() == [1, 1]


def draw(logits, uniform, temperature=1.0, top_k=0, top_p=1.0):
    rows = len(uniform)
    return run(
        "sample",
        np.repeat(f32([logits]), rows, axis=0),
        f32(uniform),
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k),
        np.full(rows, top_p, np.float32),
    )


def test_sample_inverts_the_distribution_in_descending_order():
    logits = np.log([0.2, 0.5, 0.3])
    assert draw(logits, [0.0, 0.49, 0.51, 0.79, 0.81, 0.999]).tolist() == [1, 1, 2, 2, 0, 0]


def test_sample_top_k_then_top_p():
    logits = np.log([0.1, 0.4, 0.3, 0.2])
    assert set(draw(logits, np.linspace(0, 0.99, 50), top_k=2).tolist()) == {1, 2}
    assert set(draw(logits, np.linspace(0, 0.99, 50), top_p=0.71).tolist()) == {1, 2, 3}
    assert set(draw(logits, np.linspace(0, 0.99, 50), top_p=0.69).tolist()) == {1, 2}
    # Of the two that top_k leaves, the first has 4/7 of the probability and is enough.
    assert set(draw(logits, np.linspace(0, 0.99, 50), top_k=2, top_p=0.5).tolist()) == {1}
    assert set(draw(logits, np.linspace(0, 0.99, 50), top_p=1e-9).tolist()) == {1}


def test_sample_ranks_equals_by_id():
    assert set(draw([1, 1, 1, 0], np.linspace(0, 0.99, 50), top_k=2).tolist()) == {0, 1}
    assert draw([1, 1], [0.49, 0.51]).tolist() == [0, 1]


def test_sample_at_temperature_zero_is_greedy(rng):
    logits = rng.normal(size=20)
    assert set(draw(logits, [0.0, 0.5, 0.999], temperature=0).tolist()) == {int(logits.argmax())}


def test_sample_follows_the_distribution(rng):
    logits, temperature = rng.normal(size=12), 0.8
    got = draw(logits, rng.random(40_000, np.float32), temperature)
    powers = np.exp(logits / temperature)
    expected = powers / powers.sum() * len(got)
    chi_square = float((((np.bincount(got, minlength=12) - expected) ** 2) / expected).sum())
    assert chi_square < 50.0  # p = 6e-7 at 11 degrees of freedom
