"""A decoder of Llama's architecture: on a backend, and in NumPy.

The two share weights and nothing else. :class:`BackendDecoder` runs batches over a paged pool
through the public interface; :func:`reference_logits` computes every sequence anew from its tokens,
in float64, without a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.dtypes import DType
from sagellm_backend.kv import KVPool
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.rope import rope_cache

NEEDED = (
    "embedding",
    "linear",
    "rms_norm",
    "add_rms_norm",
    "rope",
    "kv_write",
    "attention",
    "silu_and_mul",
    "greedy_sample",
)
Array = npt.NDArray[Any]
Weights = dict[str, Array]
"""``embed``, ``head``, ``norm``, and of each layer ``q``, ``k``, ``v``, ``o``, ``gate_up``,
``down``, ``norm`` (before attention) and ``mlp_norm``, as ``0.q``; matrices have a row per output."""


@dataclass(frozen=True)
class Shape:
    """What the weights do not say by their sizes. ``positions`` bounds the length of a sequence."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    eps: float = 1e-5
    base: float = 10000.0

    @property
    def scale(self) -> float:
        """What attention multiplies its logits by."""
        return float(self.head_dim**-0.5)

    def angles(self) -> Array:
        """The table that ``rope`` reads."""
        return rope_cache(self.positions, self.head_dim, self.base)


def model_dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The dtypes that every operation of the decoder, and a pool, are declared for."""
    found = set(capability.kv.dtypes)
    for name in NEEDED:
        found &= set(capability.operations.get(name, ()))
    return tuple(dtype for dtype in capability.kv.dtypes if dtype in found)


def reference_logits(
    shape: Shape, weights: Weights, sequences: Sequence[Sequence[int]], last: int = 1
) -> Array:
    """The float64 logits behind each of the ``last`` tokens of every sequence.

    Of shape (sequences, ``last``, vocabulary), computed from all tokens at once.
    """
    op: dict[str, Callable[..., Any]] = {name: OPERATIONS[name].reference for name in NEEDED}
    metadata = AttentionMetadata.build([len(tokens) for tokens in sequences])
    angles = shape.angles()
    residual = op["embedding"](np.concatenate(sequences), weights["embed"]).astype(np.float64)
    for layer in range(shape.layers):
        x = op["rms_norm"](residual, weights[f"{layer}.norm"], shape.eps)
        q, k, v = (
            op["linear"](x, weights[f"{layer}.{name}"]).reshape(len(x), -1, shape.head_dim)
            for name in "qkv"
        )
        q, k = op["rope"](q, k, metadata.positions(), angles)
        x = op["attention"](q, k, v, metadata, scale=shape.scale).reshape(len(x), -1)
        residual = residual + op["linear"](x, weights[f"{layer}.o"])
        x = op["rms_norm"](residual, weights[f"{layer}.mlp_norm"], shape.eps)
        x = op["silu_and_mul"](op["linear"](x, weights[f"{layer}.gate_up"]))
        residual = residual + op["linear"](x, weights[f"{layer}.down"])
    ends = metadata.cu_query[1:, None] + np.arange(-last, 0)
    rows = op["rms_norm"](residual[ends], weights["norm"], shape.eps)
    found: Array = op["linear"](rows, weights["head"])
    return found


@dataclass
class Running:
    """A sequence on the device: its tokens, how many of them the pool holds, and its blocks."""

    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    def grow(self, pool: KVPool) -> None:
        """Take the blocks that its tokens need and it has not yet."""
        missing = pool.layout.blocks_for(len(self.tokens)) - len(self.blocks)
        self.blocks += pool.alloc(missing).tolist()


class BackendDecoder:
    """The decoder on a backend. ``dtype`` is that of weights, activations and pool."""

    def __init__(
        self, provider: BackendProvider, shape: Shape, weights: Weights, dtype: DType
    ) -> None:
        self.provider = provider
        self.shape = shape
        self.op = {name: provider.get_kernel(name, dtype=dtype) for name in NEEDED}
        # A tied head is the embedding itself: one copy of it on the device.
        distinct = {id(array): array for array in weights.values()}
        native = {key: provider.from_numpy(array) for key, array in distinct.items()}
        self.weights = {name: native[id(array)] for name, array in weights.items()}
        self.angles = provider.from_numpy(shape.angles())

    def step(self, batch: Sequence[Running], pool: KVPool) -> tuple[Array, Array]:
        """Compute the new tokens of each sequence: the logits behind them, and the best token."""
        provider, op, shape = self.provider, self.op, self.shape
        metadata = provider.attention_metadata(
            [len(item.tokens) - item.computed for item in batch],
            [len(item.tokens) for item in batch],
            [item.blocks for item in batch],
            pool.layout.block_size,
        )
        ids = np.concatenate([item.tokens[item.computed :] for item in batch])
        where = provider.from_numpy(metadata.positions()), self.angles
        slots = provider.from_numpy(metadata.slots().astype(pool.layout.index_dtype.numpy))
        residual = op["embedding"](provider.from_numpy(ids), self.weights["embed"])
        x = op["rms_norm"](residual, self.weights["0.norm"], shape.eps)
        for layer in range(shape.layers):
            q, k, v = (
                self._linear(x, layer, name).reshape(-1, heads, shape.head_dim)
                for name, heads in (
                    ("q", shape.heads),
                    ("k", shape.kv_heads),
                    ("v", shape.kv_heads),
                )
            )
            q, k = op["rope"](q, k, *where)
            keys, values = pool.key_cache(layer), pool.value_cache(layer)
            op["kv_write"](k, v, keys, values, slots)
            x = op["attention"](q, keys, values, metadata, scale=shape.scale)
            x, residual = op["add_rms_norm"](
                self._linear(x.reshape(len(ids), -1), layer, "o"),
                residual,
                self.weights[f"{layer}.mlp_norm"],
                shape.eps,
            )
            x = self._linear(op["silu_and_mul"](self._linear(x, layer, "gate_up")), layer, "down")
            name = f"{layer + 1}.norm" if layer + 1 < shape.layers else "norm"
            x, residual = op["add_rms_norm"](x, residual, self.weights[name], shape.eps)
        last = provider.from_numpy(metadata.cu_query[1:] - 1)
        logits = op["linear"](op["embedding"](last, x), self.weights["head"])
        for item in batch:
            item.computed = len(item.tokens)
        best = provider.to_numpy(op["greedy_sample"](logits))
        return provider.to_numpy(logits).astype(np.float64), best

    def _linear(self, x: Any, layer: int, name: str) -> Any:
        return self.op["linear"](x, self.weights[f"{layer}.{name}"])
