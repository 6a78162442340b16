"""Calls with subnormal results: each element is made of one subnormal operand or product.

Where every result is so, a device that flushes can give the right number or zero, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.dtypes import DType
from sagellm_backend.ops.cases import Array, normal
from sagellm_backend.ops.rope import rope_cache

_SIDE = 32
Calls = Iterator[dict[str, Any]]


def smallest_normal(dtype: DType) -> float:
    """The smallest positive normal number of a dtype, such as 2**-126 in fp32 and bf16."""
    return _finfo(dtype.numpy, "smallest_normal")


def smallest_subnormal(dtype: DType) -> float:
    """The distance between subnormal numbers of a dtype, such as 2**-149 in fp32."""
    return _finfo(dtype.numpy, "smallest_subnormal")


@cache
def _finfo(dtype: Any, name: str) -> float:
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(getattr(info, name))


def subnormals(rng: np.random.Generator, dtype: DType, *shape: int) -> Array:
    """Subnormal numbers of either sign, none of them zero."""
    count = round(smallest_normal(dtype) / smallest_subnormal(dtype))
    values = rng.integers(1, count, shape) * rng.choice([-1.0, 1.0], shape)
    found: Array = (values * smallest_subnormal(dtype)).astype(dtype.numpy)
    return found


def _linear(rng: np.random.Generator, dtype: DType) -> Calls:
    eye, zero = np.eye(_SIDE, dtype=dtype.numpy), np.zeros((_SIDE, _SIDE), dtype.numpy)
    weight, bias = subnormals(rng, dtype, _SIDE, _SIDE), subnormals(rng, dtype, _SIDE)
    yield {"x": eye, "weight": weight, "bias": None}
    yield {"x": weight, "weight": eye, "bias": None}
    yield {"x": zero, "weight": eye, "bias": bias}
    one, other = _factors(rng, dtype, _SIDE, 1), _factors(rng, dtype, _SIDE, 1)
    yield {"x": one, "weight": other, "bias": None}
    # Of normal results only the operand can be flushed.
    yield {"x": eye * dtype.numpy.type(2 / dtype.unit_roundoff), "weight": weight, "bias": None}


def _int8(rng: np.random.Generator, dtype: DType, size: int) -> Calls:
    """Products of ``size``, the largest number of each row, with weights whose scale is small."""
    weight = rng.choice([-1, 1], (_SIDE, _SIDE)).astype(np.int8)
    small = (smallest_normal(dtype) / size * rng.uniform(0.25, 0.99, _SIDE)).astype(np.float32)
    eye, zeros = np.eye(_SIDE, dtype=dtype.numpy), np.zeros((_SIDE, _SIDE), dtype.numpy)
    yield {"x": size * eye, "weight": weight, "scale": small, "bias": None}
    bias, ones = subnormals(rng, dtype, _SIDE), np.ones(_SIDE, np.float32)
    yield {"x": zeros, "weight": weight, "scale": ones, "bias": bias}


def _linear_w8a8(rng: np.random.Generator, dtype: DType) -> Calls:
    yield from _int8(rng, dtype, 127)  # by which the scale of a row is 1


def _linear_w8a16(rng: np.random.Generator, dtype: DType) -> Calls:
    yield from _int8(rng, dtype, 1)
    x, eye = subnormals(rng, dtype, _SIDE, _SIDE), np.eye(_SIDE, dtype=np.int8)
    yield {"x": x, "weight": eye, "scale": np.ones(_SIDE, np.float32), "bias": None}


def _linear_w4a16(rng: np.random.Generator, dtype: DType) -> Calls:
    codes = rng.choice([7, 9], (2, _SIDE, _SIDE // 2))
    weight = (codes[0] | codes[1] << 4).astype(np.uint8).view(np.int8)
    eye = np.eye(_SIDE, dtype=dtype.numpy)
    small = smallest_normal(dtype) * rng.uniform(0.25, 0.99, (_SIDE, 4))
    yield {"x": eye, "weight": weight, "scale": small.astype(np.float32)}
    ones, zeros = np.ones((_SIDE, 4), np.float32), np.zeros((_SIDE, _SIDE), dtype.numpy)
    bias = subnormals(rng, dtype, _SIDE)
    yield {"x": zeros, "weight": weight, "scale": ones, "bias": bias}


def _matmul(rng: np.random.Generator, dtype: DType) -> Calls:
    eye = np.eye(_SIDE, dtype=dtype.numpy)
    yield {"a": eye, "b": subnormals(rng, dtype, _SIDE, _SIDE)}
    yield {"a": subnormals(rng, dtype, 3, _SIDE, _SIDE), "b": np.stack([eye] * 3)}
    yield {"a": _factors(rng, dtype, _SIDE, 1), "b": _factors(rng, dtype, 1, _SIDE)}


def _factors(rng: np.random.Generator, dtype: DType, *shape: int) -> Array:
    """Normal numbers whose products are subnormal."""
    signs = rng.choice([-1.0, 1.0], shape) * np.sqrt(smallest_normal(dtype) / 8)
    found: Array = (rng.uniform(1, 2, shape) * signs).astype(dtype.numpy)
    return found


def _embedding(rng: np.random.Generator, dtype: DType) -> Calls:
    yield {"ids": rng.permutation(_SIDE), "table": subnormals(rng, dtype, _SIDE, _SIDE)}


def _kv_write(rng: np.random.Generator, dtype: DType) -> Calls:
    tokens = [subnormals(rng, dtype, 11, 2, _SIDE) for _ in range(2)]
    caches = [np.zeros((2, 8, 2, _SIDE), dtype.numpy) for _ in range(2)]
    slots = rng.permutation(16)[:11]
    names = ("key", "value", "key_cache", "value_cache")
    yield {**dict(zip(names, (*tokens, *caches), strict=True)), "slots": slots}


def _silu_and_mul(rng: np.random.Generator, dtype: DType) -> Calls:
    # A subnormal gate shows nothing: silu may lose it to the exponential.
    gate = np.asarray(rng.uniform(0.25, 1, (8, _SIDE))).astype(dtype.numpy)
    yield {"x": np.concatenate([gate, subnormals(rng, dtype, 8, _SIDE)], axis=-1)}


def _gelu(rng: np.random.Generator, dtype: DType) -> Calls:
    for approximate in ("none", "tanh"):
        yield {"x": subnormals(rng, dtype, 8, _SIDE), "approximate": approximate}


def _softmax(rng: np.random.Generator, dtype: DType) -> Calls:
    # Shares of exp(x): from half the smallest normal down to a few subnormal steps.
    high, low = np.log(smallest_normal(dtype)) - 0.7, np.log(smallest_subnormal(dtype)) + 2.5
    x = np.asarray(rng.uniform(low, high, (8, _SIDE)))
    x[:, 0] = 0
    yield {"x": x.astype(dtype.numpy)}


def _rms_norm(rng: np.random.Generator, dtype: DType) -> Calls:
    ones = np.ones(_SIDE, dtype.numpy)
    yield {"x": subnormals(rng, dtype, 8, _SIDE), "weight": ones, "eps": 1.0}
    signs = rng.choice([-1.0, 1.0], (8, _SIDE)).astype(dtype.numpy)
    yield {"x": signs, "weight": subnormals(rng, dtype, _SIDE), "eps": 1e-6}


def _add_rms_norm(rng: np.random.Generator, dtype: DType) -> Calls:
    ones, zeros = np.ones(_SIDE, dtype.numpy), np.zeros((8, _SIDE), dtype.numpy)
    small = subnormals(rng, dtype, 8, _SIDE)
    for x, residual in ((small, zeros), (zeros, small)):
        yield {"x": x, "residual": residual, "weight": ones, "eps": 1.0}


def _layer_norm(rng: np.random.Generator, dtype: DType) -> Calls:
    zeros, ones = np.zeros((8, _SIDE), dtype.numpy), np.ones(_SIDE, dtype.numpy)
    yield {"x": zeros, "weight": ones, "bias": subnormals(rng, dtype, _SIDE), "eps": 1e-6}


def _rope(rng: np.random.Generator, dtype: DType) -> Calls:
    q, k = (subnormals(rng, dtype, 5, heads, _SIDE) for heads in (4, 2))
    positions = np.zeros(5, np.int64)
    yield {"q": q, "k": k, "positions": positions, "cos_sin": rope_cache(8, _SIDE)}


def _attention(rng: np.random.Generator, dtype: DType) -> Calls:
    q, k = (normal(rng, dtype, 5, heads, 2 * _SIDE) for heads in (4, 2))
    v, metadata = subnormals(rng, dtype, 5, 2, 2 * _SIDE), AttentionMetadata.build([5])
    # The first token attends to itself alone; of more the sum is of several terms.
    yield {"q": q, "k": k, "v": v, "metadata": metadata, "scale": 0.125}


RECIPES: Mapping[str, Callable[[np.random.Generator, DType], Calls]] = {
    "linear": _linear,
    "linear_w8a16": _linear_w8a16,
    "linear_w8a8": _linear_w8a8,
    "linear_w4a16": _linear_w4a16,
    "matmul": _matmul,
    "embedding": _embedding,
    "kv_write": _kv_write,
    "silu_and_mul": _silu_and_mul,
    "gelu": _gelu,
    "softmax": _softmax,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "attention": _attention,
}
"""Arguments of calls by the name of the operation, for every one whose results are not ids."""
