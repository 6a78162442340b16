"""Correct kernels that sum, round and draw in other ways than the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.zoo.flawed_attention import gather
from sagellm_backend.conformance.zoo.member import honest, with_kernels
from sagellm_backend.ops.cases import Array
from sagellm_backend.reference.provider import ReferenceProvider

Sum = Callable[[Array], Array]


def f32(array: Any) -> Array:
    """The array in fp32, in which devices accumulate."""
    return np.asarray(array).astype(np.float32)


def one_by_one(terms: Array) -> Array:
    """The sum over the last axis, from the first term on."""
    found: Array = np.cumsum(terms, axis=-1, dtype=np.float32)[..., -1]
    return found


def pairwise(terms: Array) -> Array:
    """The sum over the last axis in pairs, of pairs of pairs."""
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], axis=-1)
        terms = terms[..., ::2] + terms[..., 1::2]
    return terms[..., 0]


def in_blocks(terms: Array) -> Array:
    """The sum over the last axis by 32 at a time, the last block first."""
    blocks = np.array_split(terms, -(-terms.shape[-1] // 32), axis=-1)
    total = one_by_one(blocks[-1])
    for block in blocks[-2::-1]:
        total = total + one_by_one(block)
    return total


def summing(total: Sum) -> dict[str, Callable[..., Any]]:
    """Kernels that accumulate in fp32 by ``total``."""

    def matmul(a: Array, b: Array) -> Array:
        return total(f32(a)[..., :, None, :] * f32(b).swapaxes(-1, -2)[..., None, :, :])

    def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
        product = total(f32(x)[..., None, :] * f32(weight))
        return product if bias is None else product + f32(bias)

    def rms_norm(x: Array, weight: Array, eps: float) -> Array:
        wide = f32(x)
        square = total(wide * wide)[..., None] / np.float32(wide.shape[-1])
        found: Array = wide * (1 / np.sqrt(square + np.float32(eps))) * f32(weight)
        return found

    def softmax(x: Array) -> Array:
        wide = f32(x)
        top = wide.max(axis=-1, keepdims=True, initial=-np.inf)
        powers = np.exp(wide - top)
        found: Array = powers * (1 / total(powers)[..., None])
        return found

    return {"matmul": matmul, "linear": linear, "rms_norm": rms_norm, "softmax": softmax}


def _variant(name: str, kernels: Mapping[str, Callable[..., Any]]) -> type[ReferenceProvider]:
    return type(name, (with_kernels(kernels),), {})


_KERNELS = ("kernels",)
honest("Sums in fp32, term by term", profiles=_KERNELS)(
    _variant("SumsOneByOne", summing(one_by_one))
)
honest("Sums in fp32, in pairs", profiles=_KERNELS)(_variant("SumsPairwise", summing(pairwise)))
honest("Sums in fp32, in blocks from the end", profiles=_KERNELS)(
    _variant("SumsInBlocks", summing(in_blocks))
)


def softmax_by_logarithm(x: Array) -> Array:
    """``exp(x - log(sum(exp(x))))``, the logarithm taken around the maximum."""
    wide = f32(x)
    shifted = wide - wide.max(axis=-1, keepdims=True, initial=-np.inf)
    found: Array = np.exp(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
    return found


honest("Its softmax goes by log-sum-exp", profiles=_KERNELS)(
    _variant("SoftmaxByLogSumExp", {"softmax": softmax_by_logarithm})
)


def sample_by_counting(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    """All rows at once: sort, mask, cumulate in fp32, count the shares that are not above."""
    wide, cold = f32(logits), temperature[:, None] == 0
    scaled = wide / np.where(cold, np.float32(1), temperature[:, None])
    order = np.argsort(-scaled, axis=-1, kind="stable")
    ordered = np.take_along_axis(scaled, order, axis=-1)
    rank = np.arange(wide.shape[-1])
    limit = np.where(top_k > 0, top_k, len(rank))[:, None]
    powers = np.where(rank < limit, np.exp(ordered - ordered[:, :1]), 0).astype(np.float32)
    before = np.cumsum(powers, axis=-1) - powers
    powers[before >= top_p[:, None] * powers.sum(axis=-1, keepdims=True)] = 0
    powers[cold[:, 0], 1:] = 0
    shares = np.cumsum(powers, axis=-1, dtype=np.float32)
    place = (shares <= uniform[:, None] * shares[:, -1:]).sum(axis=-1)
    place = np.minimum(place, (powers > 0).sum(axis=-1) - 1)
    found: Array = np.take_along_axis(order, place[:, None], axis=-1)[:, 0]
    return found


honest("It samples all rows at once, by counting", profiles=_KERNELS)(
    _variant("SamplesByCounting", {"sample": sample_by_counting})
)


def attention_in_blocks(
    q: Array,
    k: Array,
    v: Array,
    metadata: AttentionMetadata,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """Blocks of 24 keys with a running maximum; weights are rounded to the dtype.

    Dao et al., "FlashAttention", 2022.
    """
    result = np.zeros(q.shape, np.float32)
    group = q.shape[1] // k.shape[-2]
    for sequence in range(metadata.batch):
        rows = slice(int(metadata.cu_query[sequence]), int(metadata.cu_query[sequence + 1]))
        keys, values = (
            np.repeat(f32(gather(cache, metadata, sequence, False)), group, axis=1)
            for cache in (k, v)
        )
        queries = f32(q[rows]) * np.float32(scale)
        position = np.arange(len(keys) - len(queries), len(keys))[:, None]
        top = np.full((q.shape[1], len(queries), 1), -np.inf, np.float32)
        total, state = np.zeros_like(top), np.zeros((q.shape[1], *queries[:, 0].shape), np.float32)
        for start in range(0, len(keys), 24):
            part = slice(start, start + 24)
            logits = np.einsum("qhd,khd->hqk", queries, keys[part])
            if softcap is not None:
                logits = np.float32(softcap) * np.tanh(logits / np.float32(softcap))
            key = np.arange(len(keys))[part]
            hidden = (key > position) if causal else np.zeros((len(queries), len(key)), bool)
            if window is not None:
                hidden |= key <= position - window
            logits = np.where(hidden, np.float32(-np.inf), logits)
            higher = np.maximum(top, logits.max(axis=-1, keepdims=True))
            safe = np.where(np.isneginf(higher), np.float32(0), higher)
            weights, faded = np.exp(logits - safe), np.exp(top - safe)
            total = total * faded + weights.sum(axis=-1, keepdims=True)
            rounded = f32(weights.astype(q.dtype))
            state = state * faded + np.einsum("hqk,khd->hqd", rounded, values[part])
            top = higher
        if sinks is not None:
            total = total + np.exp(sinks[:, None, None] - top)
        result[rows] = (state / total).swapaxes(0, 1)
    return result


honest("Its attention goes block by block, in fp32", profiles=("attention", "model"))(
    _variant("AttendsInBlocks", {"attention": attention_in_blocks})
)
