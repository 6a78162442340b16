"""Faults of matrix products and of the embedding."""

from __future__ import annotations

import numpy as np

from sagellm_backend.conformance.zoo.member import kernel_fault
from sagellm_backend.ops.cases import Array, f64
from sagellm_backend.ops.linear import embedding, linear, matmul

_LINEAR = ("kernels.linear",)
_MATMUL = ("kernels.matmul",)
_EMBEDDING = ("kernels.embedding",)


def _truncated(values: Array, bits: int) -> Array:
    """Values in fp32 without the lowest ``bits`` bits of the fraction."""
    words = np.asarray(values, np.float32).view(np.uint32)
    found: Array = (words & np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)).view(np.float32)
    return found


def _accumulated(a: Array, b: Array, parts: int) -> Array:
    """``a @ b`` in parts of the inner dimension, each partial sum rounded to the storage dtype."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
    for rows in np.array_split(np.arange(a.shape[-1]), parts):
        total = (f64(total) + f64(a[..., rows]) @ f64(b[..., rows, :])).astype(a.dtype)
    return total


@kernel_fault("linear", "A linear of fp32 rounds its inputs to TF32", kills=_LINEAR)
def linear_in_tf32(x: Array, weight: Array, bias: Array | None = None) -> Array:
    if x.dtype == np.float32:
        x, weight = _truncated(x, 13), _truncated(weight, 13)
    return linear(x, weight, bias)


@kernel_fault("linear", "A linear accumulates in the storage dtype", kills=_LINEAR)
def linear_accumulates_in_its_dtype(x: Array, weight: Array, bias: Array | None = None) -> Array:
    product = f64(_accumulated(x, weight.T, min(x.shape[-1], 256)))
    return product if bias is None else product + f64(bias)


@kernel_fault("linear", "A linear splits K and rounds the partial sums", kills=_LINEAR)
def linear_rounds_partial_sums(x: Array, weight: Array, bias: Array | None = None) -> Array:
    product = f64(_accumulated(x, weight.T, 4))
    return product if bias is None else product + f64(bias)


@kernel_fault("linear", "A linear forgets its bias", kills=_LINEAR)
def linear_forgets_bias(x: Array, weight: Array, bias: Array | None = None) -> Array:
    del bias
    return linear(x, weight)


@kernel_fault("matmul", "A matmul truncates its result where it should round", kills=_MATMUL)
def matmul_truncates(a: Array, b: Array) -> Array:
    exact = matmul(a, b)
    if a.dtype == np.float32:
        return exact
    toward = np.nextafter(exact.astype(a.dtype), np.zeros((), a.dtype))
    rounded = exact.astype(a.dtype)
    return np.where(np.abs(f64(rounded)) > np.abs(exact), f64(toward), f64(rounded))


@kernel_fault("matmul", "A batched matmul multiplies by the first matrix always", kills=_MATMUL)
def matmul_reads_first_matrix(a: Array, b: Array) -> Array:
    flat = b.reshape(-1, *b.shape[-2:])
    return f64(a) @ f64(flat[0])


@kernel_fault("matmul", "A matmul leaves the last of an odd inner dimension out", kills=_MATMUL)
def matmul_drops_odd_tail(a: Array, b: Array) -> Array:
    even = a.shape[-1] // 2 * 2
    return f64(a[..., :even]) @ f64(b[..., :even, :])


@kernel_fault("embedding", "An embedding passes fp32 rows through bf16", kills=_EMBEDDING)
def embedding_rounds_rows(ids: Array, table: Array) -> Array:
    return f64(_truncated(table, 16)[ids])


@kernel_fault("embedding", "An embedding never reads the last row", kills=_EMBEDDING)
def embedding_clips_ids(ids: Array, table: Array) -> Array:
    return embedding(np.minimum(ids, len(table) - 2), table)


@kernel_fault("embedding", "An embedding reads int32 ids as int64", kills=_EMBEDDING)
def embedding_misreads_int32(ids: Array, table: Array) -> Array:
    if ids.dtype == np.int32 and ids.size:
        padded = np.resize(ids.reshape(-1), 2 * ids.size).astype(np.int32)
        ids = (padded.view(np.int64) % len(table)).reshape(ids.shape)
    return embedding(ids, table)
