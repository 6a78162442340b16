"""Attention over packed keys or a paged cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sagellm_backend.attention.metadata import AttentionMetadata
from sagellm_backend.capability import KernelKind
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.attention_cases import attention_cases
from sagellm_backend.ops.cases import Array, f64
from sagellm_backend.ops.shapes import Bindings
from sagellm_backend.ops.statics import (
    Static,
    boolean,
    choice,
    optional,
    positive_int,
    positive_real,
)
from sagellm_backend.ops.table import Arguments, declare

_FP32_ROUNDOFF = DType.FP32.unit_roundoff
_SINKS = Arg("hq", "fp32", optional=True)


def _specialise(arguments: Arguments) -> Mapping[str, Arg]:
    metadata = arguments["metadata"]
    if not isinstance(metadata, AttentionMetadata):
        raise InvalidArgumentError(
            f"attention: metadata must be an AttentionMetadata, not {type(metadata).__name__}.",
            hint="Make one with backend.attention_metadata(...).",
        )
    keys = Arg("tk hk d" if metadata.block_table is None else "blocks s hk d")
    return {"q": Arg("t hq d"), "k": keys, "v": keys, "sinks": _SINKS}


def _relate(arguments: Arguments, bindings: Bindings) -> str | None:
    metadata = arguments["metadata"]
    heads, kv_heads = bindings["hq"], bindings["hk"]
    if heads % kv_heads:
        return f"q has {heads} heads, which is no multiple of the {kv_heads} heads of k and v"
    if bindings["t"] != metadata.num_query_tokens:
        return f"q has {bindings['t']} tokens, metadata has {metadata.num_query_tokens}"
    if metadata.block_table is None:
        total = int(metadata.cu_kv[-1])
        return None if bindings["tk"] == total else f"k has {bindings['tk']} tokens, not {total}"
    if bindings["s"] != metadata.block_size:
        return f"the cache has blocks of {bindings['s']}, metadata of {metadata.block_size}"
    metadata.check_blocks(bindings["blocks"])
    return None


def _gather(cache: Array, metadata: AttentionMetadata, sequence: int) -> Array:
    """The (kv_len, heads, size) keys or values of one sequence."""
    length = int(metadata.kv_lens[sequence])
    if metadata.block_table is None or metadata.block_size is None:
        start = int(metadata.cu_kv[sequence])
        return f64(cache[start : start + length])
    blocks = metadata.block_table[sequence, : -(-length // metadata.block_size)]
    return f64(cache[blocks]).reshape(-1, *cache.shape[2:])[:length]


def _visible(query_len: int, kv_len: int, window: int | None, *, causal: bool) -> Array:
    """Which keys (columns) each query (row) attends to."""
    query = np.arange(kv_len - query_len, kv_len)[:, None]
    key = np.arange(kv_len)[None, :]
    seen: Array = np.ones((query_len, kv_len), bool)
    if causal:
        seen &= key <= query
    if window is not None:
        seen &= key > query - window
    return seen


def _probabilities(
    q: Array,
    k: Array,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """Softmax weights of one sequence, as (heads, queries, keys); heads of k are those of q."""
    logits = np.einsum("qhd,khd->hqk", q, k) * scale
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    logits = np.where(_visible(len(q), len(k), window, causal=causal), logits, -np.inf)
    highest = logits.max(axis=-1, keepdims=True)
    extra: Array | float = 0.0
    if sinks is not None:
        sink = f64(sinks)[:, None, None]
        highest = np.maximum(highest, sink)
        extra = np.exp(sink - highest)
    powers = np.exp(logits - highest)
    result: Array = powers / (powers.sum(axis=-1, keepdims=True) + extra)
    return result


def _sequences(
    q: Array, k: Array, v: Array, metadata: AttentionMetadata
) -> Iterator[tuple[slice, Array, Array, Array]]:
    """Rows of q, and q, k, v in float64 per sequence, with one kv head per query head."""
    group = q.shape[1] // k.shape[-2]
    for sequence in range(metadata.batch):
        rows = slice(int(metadata.cu_query[sequence]), int(metadata.cu_query[sequence + 1]))
        keys, values = (
            np.repeat(_gather(cache, metadata, sequence), group, axis=1) for cache in (k, v)
        )
        yield rows, f64(q[rows]), keys, values


def _magnitude(
    q: Array, k: Array, v: Array, metadata: AttentionMetadata, *, scale: float, **options: Any
) -> tuple[Array, ...]:
    """Probabilities are off by their cast to the dtype, by the errors of logits, and of exp().

    A logit is off by 2**-24 times the sum of its terms' absolute values; the factor 4 leaves room
    for the highest logit, which is subtracted, and for any order of summation.
    """
    dtype = dtype_of(q)
    cast = 0.0 if dtype is DType.FP32 else dtype.unit_roundoff / _FP32_ROUNDOFF
    result = np.zeros(q.shape)
    for rows, query, keys, values in _sequences(q, k, v, metadata):
        weights = _probabilities(query, keys, scale=scale, **options)
        logit = np.einsum("qhd,khd->hqk", np.abs(query), np.abs(keys)).max(axis=-1) * scale
        if options.get("sinks") is not None:
            logit = np.maximum(logit, np.abs(f64(options["sinks"]))[:, None])
        error = cast + 4 * (logit + (options.get("softcap") or 0.0)) + 16
        terms = np.einsum("hqk,khd->qhd", weights, np.abs(values))
        result[rows] = error.T[..., None] * terms
    return (result,)


@declare(
    args={"q": Arg("t hq d"), "k": Arg("... hk d"), "v": Arg("... hk d"), "sinks": _SINKS},
    returns=(Arg("t hq d"),),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.ATTENTION,
    inputs=attention_cases,
    statics={
        "scale": Static(positive_real),
        "causal": Static(boolean),
        "window": Static(optional(positive_int)),
        "softcap": Static(optional(positive_real)),
        "has_sinks": Static(boolean, lambda arguments: arguments["sinks"] is not None),
        "mode": Static(
            choice("ragged_prefill", "paged_prefill", "paged_decode"),
            lambda arguments: arguments["metadata"].mode,
        ),
        "head_dim": Static(positive_int, "d"),
        "num_heads": Static(positive_int, "hq"),
        "num_kv_heads": Static(positive_int, "hk"),
        "block_size": Static(optional(positive_int), "s"),
    },
    specialise=_specialise,
    relate=_relate,
    magnitude=_magnitude,
    bound=1.0,
    rms_bound=0.5,
)
def attention(
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
    """Softmax attention of each sequence's new tokens over all of its tokens.

    ``metadata`` says where they are: ``k`` and ``v`` are packed like ``q`` (ragged), as
    (tokens, kv heads, size), or caches of shape (blocks, block size, kv heads, size), strided in
    any way. Query head ``h`` reads kv head ``h // (hq // hk)``. Query ``i`` of a sequence stands at
    position ``kv_len - query_len + i``.

    Logits are ``q . k * scale``: the scale is applied here, once, and nothing is divided by
    ``sqrt(d)``. With a ``softcap`` c they become ``c * tanh(logits / c)``. Then ``causal`` hides the
    keys behind the query's position, and a ``window`` of w those at or before position - w. A head's
    entry in ``sinks`` is one more logit, of a key whose value is 0: it is neither scaled, capped nor
    hidden, and the weights of the keys that are seen add up to less than 1. The softmax is computed
    in fp32 or better. Slots that hold no token of the sequence are not read into the result,
    whatever they hold, NaN included.
    """
    result = np.zeros(q.shape)
    for rows, query, keys, values in _sequences(q, k, v, metadata):
        weights = _probabilities(
            query, keys, scale=scale, causal=causal, window=window, softcap=softcap, sinks=sinks
        )
        result[rows] = np.einsum("hqk,khd->qhd", weights, values)
    return result
