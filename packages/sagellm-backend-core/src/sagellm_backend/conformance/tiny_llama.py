"""A Llama-shaped decoder of two layers, made on the spot: on a backend, and in NumPy.

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

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 16
HIDDEN, INNER, VOCABULARY, POSITIONS = HEADS * HEAD_DIM, 96, 48, 128
EPS, SCALE = 1e-5, HEAD_DIM**-0.5
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


def model_dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The dtypes that every operation of the decoder, and a pool, are declared for."""
    found = set(capability.kv.dtypes)
    for name in NEEDED:
        found &= set(capability.operations.get(name, ()))
    return tuple(dtype for dtype in capability.kv.dtypes if dtype in found)


def make_weights(rng: np.random.Generator, dtype: DType) -> Weights:
    """Random weights in ``dtype``, of a size at which every part of the decoder moves the logits."""
    query, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"embed": (VOCABULARY, HIDDEN), "head": (VOCABULARY, HIDDEN), "norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"{layer}.q": (query, HIDDEN),
            f"{layer}.k": (keys, HIDDEN),
            f"{layer}.v": (keys, HIDDEN),
            f"{layer}.o": (HIDDEN, query),
            f"{layer}.gate_up": (2 * INNER, HIDDEN),
            f"{layer}.down": (HIDDEN, INNER),
            f"{layer}.norm": (HIDDEN,),
            f"{layer}.mlp_norm": (HIDDEN,),
        }
    made = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if name.endswith("norm"):
            values = 1 + 0.2 * values
        elif name != "embed":
            values *= (2.0 if name[2:] in {"q", "o"} else 1.0) * shape[-1] ** -0.5
        made[name] = values.astype(dtype.numpy)
    return made


@dataclass
class Story:
    """A prompt, the tokens that the float64 decoder puts behind it, and the logits it chose them by."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)

    def margin(self) -> float:
        """The smallest lead of a chosen token over the next best, in deviations of its logits."""
        rows = np.sort(np.array(self.logits), axis=-1)
        lead: Array = (rows[:, -1] - rows[:, -2]) / rows.std(axis=-1)
        return float(lead.min())


def find_story(
    rng: np.random.Generator,
    weights: Weights,
    length: int,
    steps: int,
    margin: float,
    prefix: Sequence[int] = (),
) -> Story:
    """A story of a prompt of ``length``, which begins with ``prefix``, and of ``steps`` tokens.

    No choice in it is closer than ``margin``, so that rounding cannot turn a token: random prompts
    are drawn until one leads so far throughout. Raises :class:`RuntimeError` when none is found.
    """
    for _ in range(1000):
        drawn = rng.integers(0, VOCABULARY, (8, length))
        drawn[:, : len(prefix)] = prefix
        tried = [Story(prompt) for prompt in drawn.tolist()]
        for _ in range(steps):
            rows = reference_logits(weights, [item.prompt + item.tokens for item in tried])
            for item, row in zip(tried, rows, strict=True):
                item.tokens.append(int(row.argmax()))
                item.logits.append(row)
            tried = [item for item in tried if item.margin() >= margin]
            if not tried:
                break
        else:
            return tried[0]
    raise RuntimeError(f"No prompt of {length} tokens leads by {margin} in {steps} choices.")


def reference_logits(weights: Weights, sequences: Sequence[Sequence[int]]) -> Array:
    """The float64 logits that follow each sequence, computed from all of its tokens at once."""
    op: dict[str, Callable[..., Any]] = {name: OPERATIONS[name].reference for name in NEEDED}
    metadata = AttentionMetadata.build([len(tokens) for tokens in sequences])
    angles = rope_cache(POSITIONS, HEAD_DIM)
    residual = op["embedding"](np.concatenate(sequences), weights["embed"]).astype(np.float64)
    for layer in range(LAYERS):
        x = op["rms_norm"](residual, weights[f"{layer}.norm"], EPS)
        q, k, v = (
            op["linear"](x, weights[f"{layer}.{name}"]).reshape(len(x), -1, HEAD_DIM)
            for name in "qkv"
        )
        q, k = op["rope"](q, k, metadata.positions(), angles)
        x = op["attention"](q, k, v, metadata, scale=SCALE).reshape(len(x), -1)
        residual = residual + op["linear"](x, weights[f"{layer}.o"])
        x = op["rms_norm"](residual, weights[f"{layer}.mlp_norm"], EPS)
        x = op["silu_and_mul"](op["linear"](x, weights[f"{layer}.gate_up"]))
        residual = residual + op["linear"](x, weights[f"{layer}.down"])
    last = op["rms_norm"](residual[metadata.cu_query[1:] - 1], weights["norm"], EPS)
    found: Array = op["linear"](last, weights["head"])
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

    def __init__(self, provider: BackendProvider, weights: Weights, dtype: DType) -> None:
        self.provider = provider
        self.dtype = dtype
        self.op = {name: provider.get_kernel(name, dtype=dtype) for name in NEEDED}
        self.weights = {name: provider.from_numpy(array) for name, array in weights.items()}
        self.angles = provider.from_numpy(rope_cache(POSITIONS, HEAD_DIM))

    def step(self, batch: Sequence[Running], pool: KVPool) -> tuple[Array, Array]:
        """Compute the new tokens of each sequence: the logits behind them, and the best token."""
        provider, op = self.provider, self.op
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
        x = op["rms_norm"](residual, self.weights["0.norm"], EPS)
        for layer in range(LAYERS):
            q, k, v = (
                self._linear(x, layer, name).reshape(-1, heads, HEAD_DIM)
                for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
            )
            q, k = op["rope"](q, k, *where)
            keys, values = pool.key_cache(layer), pool.value_cache(layer)
            op["kv_write"](k, v, keys, values, slots)
            x = op["attention"](q, keys, values, metadata, scale=SCALE).reshape(-1, HIDDEN)
            x, residual = op["add_rms_norm"](
                self._linear(x, layer, "o"), residual, self.weights[f"{layer}.mlp_norm"], EPS
            )
            x = self._linear(op["silu_and_mul"](self._linear(x, layer, "gate_up")), layer, "down")
            name = f"{layer + 1}.norm" if layer + 1 < LAYERS else "norm"
            x, residual = op["add_rms_norm"](x, residual, self.weights[name], EPS)
        last = provider.from_numpy(metadata.cu_query[1:] - 1)
        logits = op["linear"](op["embedding"](last, x), self.weights["head"])
        for item in batch:
            item.computed = len(item.tokens)
        best = provider.to_numpy(op["greedy_sample"](logits))
        return provider.to_numpy(logits).astype(np.float64), best

    def _linear(self, x: Any, layer: int, name: str) -> Any:
        return self.op["linear"](x, self.weights[f"{layer}.{name}"])
