"""A Llama-architecture decoder on nothing but the public interface of sagellm-backend."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from sagellm_backend import BackendProvider, DType, Feature, Graph, KVLayout, KVPool
from sagellm_backend.ops.rope import rope_cache
from sagellm_backend.quantization import quantize_int8

BLOCK_SIZE = 16
OPERATIONS = (
    "embedding",
    "linear",
    "rms_norm",
    "add_rms_norm",
    "rope",
    "kv_write",
    "attention",
    "silu_and_mul",
    "greedy_sample",
    "sample",
)


def operations(*, int8: bool = False) -> tuple[str, ...]:
    """What the decoder asks of a backend."""
    return tuple("linear_w8a16" if int8 and name == "linear" else name for name in OPERATIONS)


@dataclass
class Sequence:
    """One prompt on its way: its tokens so far, those not yet computed, and its blocks."""

    index: int
    tokens: list[int]
    prompt_length: int
    max_length: int
    pending: np.ndarray
    blocks: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_length :]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer: of a product, what it takes behind its input."""

    input_norm: Any
    qkv: tuple[Any, ...]
    out: tuple[Any, ...]
    mlp_norm: Any
    gate_up: tuple[Any, ...]
    down: tuple[Any, ...]


class Llama:
    """The decoder: weights on the device, and one forward step over a batch of sequences.

    With ``int8`` the weights of all products are, the head's too; the embedding looks up rows of
    ``dtype``. With ``graphs`` steps of single tokens are captured, where the backend can.
    """

    def __init__(
        self,
        backend: BackendProvider,
        checkpoint: Path,
        dtype: DType,
        *,
        int8: bool = False,
        graphs: bool = True,
    ) -> None:
        self.backend = backend
        self.graphs = graphs and backend.capability().supports_feature(Feature.GRAPH)
        self._pool: KVPool | None = None
        self._captured: dict[int, tuple[int, Graph]] = {}
        self.config = json.loads((checkpoint / "config.json").read_text())
        self._refuse_unknown()
        self.heads: int = self.config["num_attention_heads"]
        self.kv_heads: int = self.config.get("num_key_value_heads") or self.heads
        self.head_dim: int = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        self.depth: int = self.config["num_hidden_layers"]
        self.dtype = dtype
        self.int8 = int8
        self.op = {name: backend.get_kernel(name, dtype=dtype) for name in operations(int8=int8)}
        self.product = self.op["linear_w8a16" if int8 else "linear"]
        self._place(_read(checkpoint, dtype))
        theta = _rope(self.config).get("rope_theta", 10000.0)
        positions = self.config["max_position_embeddings"]
        self.cos_sin = backend.from_numpy(rope_cache(positions, self.head_dim, base=theta))

    def _refuse_unknown(self) -> None:
        kind, rope = self.config.get("model_type"), _rope(self.config).get("rope_type", "default")
        if kind != "llama" or rope != "default":
            raise ValueError(
                f"This example speaks llama with default rope, not {kind} with {rope}."
            )

    def _place(self, arrays: dict[str, np.ndarray]) -> None:
        """Put the checkpoint's arrays on the device."""
        place = self.backend.from_numpy
        table = arrays["embed_tokens.weight"]
        self.embed = place(table)
        head = table if self.config.get("tie_word_embeddings") else arrays["lm_head.weight"]
        self.head = self._product_of([head], [None])
        if head is table and not self.int8:
            self.head = (self.embed, None)
        self.norm = place(arrays["norm.weight"])
        self.layers = [self._layer(arrays, f"layers.{index}.") for index in range(self.depth)]

    def _layer(self, arrays: dict[str, np.ndarray], prefix: str) -> Layer:
        def product(block: str, *names: str) -> tuple[Any, ...]:
            places = [f"{prefix}{block}.{name}_proj." for name in names]
            weights = [arrays.pop(f"{place}weight") for place in places]
            return self._product_of(weights, [arrays.get(f"{place}bias") for place in places])

        def norm(name: str) -> Any:
            return self.backend.from_numpy(arrays[f"{prefix}{name}_layernorm.weight"])

        return Layer(
            input_norm=norm("input"),
            qkv=product("self_attn", "q", "k", "v"),
            out=product("self_attn", "o"),
            mlp_norm=norm("post_attention"),
            gate_up=product("mlp", "gate", "up"),
            down=product("mlp", "down"),
        )

    def _product_of(
        self, weights: list[np.ndarray], biases: list[np.ndarray | None]
    ) -> tuple[Any, ...]:
        """Products of one input as one: its matrix, or int8 and scales, and its bias or ``None``."""
        place, matrix = self.backend.from_numpy, np.concatenate(weights)
        parts = quantize_int8(matrix) if self.int8 else (matrix,)
        found = [bias for bias in biases if bias is not None]
        return *(place(part) for part in parts), place(np.concatenate(found)) if found else None

    def kv_layout(self) -> KVLayout:
        """The layout of a KV pool for this model."""
        return KVLayout(self.depth, self.kv_heads, self.head_dim, BLOCK_SIZE, self.dtype)

    def step(self, batch: list[Sequence], pool: KVPool) -> Any:
        """Logits of the next token of each sequence, after computing its pending tokens.

        Of single tokens they are good until the next step.
        """
        inputs = self._inputs(batch)
        if not self.graphs or inputs["metadata"].mode != "paged_decode":
            return self._compute(pool, **inputs)
        graph = self._graph(pool, inputs)
        graph.update(inputs)
        return graph.replay()

    def _inputs(self, batch: list[Sequence]) -> dict[str, Any]:
        """What a step depends on: ids, positions, slots and last tokens of its sequences."""
        backend = self.backend
        metadata = backend.attention_metadata(
            [len(sequence.pending) for sequence in batch],
            [len(sequence.tokens) for sequence in batch],
            [sequence.blocks.tolist() for sequence in batch],
            BLOCK_SIZE,
        )
        arrays = {
            "ids": np.concatenate([sequence.pending for sequence in batch]),
            "positions": metadata.positions(),
            "slots": metadata.slots(),
            "last": metadata.cu_query[1:] - 1,
        }
        placed = {name: backend.from_numpy(array) for name, array in arrays.items()}
        return {"metadata": metadata, **placed}

    def _graph(self, pool: KVPool, inputs: dict[str, Any]) -> Graph:
        """The graph of a batch of this size, whose captured table is wide enough."""
        if pool is not self._pool:  # graphs read and write the pool that they were captured with
            for _, graph in self._captured.values():
                graph.close()
            self._pool, self._captured = pool, {}
        batch, width = inputs["metadata"].block_table.shape
        found = self._captured.get(batch)
        if found is None or found[0] < width:
            if found is not None:
                found[1].close()
            graph = self.backend.capture(partial(self._compute, pool), inputs)
            found = self._captured[batch] = width, graph
        return found[1]

    def _compute(
        self, pool: KVPool, ids: Any, positions: Any, slots: Any, last: Any, metadata: Any
    ) -> Any:
        op, product = self.op, self.product
        eps, scale = self.config["rms_norm_eps"], self.head_dim**-0.5
        residual = op["embedding"](ids, self.embed)
        x = op["rms_norm"](residual, self.layers[0].input_norm, eps)
        norms = [layer.input_norm for layer in self.layers[1:]] + [self.norm]
        for index, (layer, next_norm) in enumerate(zip(self.layers, norms, strict=True)):
            keys, values = pool.key_cache(index), pool.value_cache(index)
            q, k, v = self._heads(product(x, *layer.qkv))
            q, k = op["rope"](q, k, positions, self.cos_sin)
            op["kv_write"](k, v, keys, values, slots)
            x = op["attention"](q, keys, values, metadata, scale=scale)
            x = product(x.reshape(-1, self.heads * self.head_dim), *layer.out)
            x, residual = op["add_rms_norm"](x, residual, layer.mlp_norm, eps)
            x = op["silu_and_mul"](product(x, *layer.gate_up))
            x = product(x, *layer.down)
            x, residual = op["add_rms_norm"](x, residual, next_norm, eps)
        return product(op["embedding"](last, x), *self.head)

    def _heads(self, qkv: Any) -> tuple[Any, Any, Any]:
        """Queries, keys and values of the heads, out of their common product."""
        keys, values = self.heads, self.heads + self.kv_heads
        heads = qkv.reshape(-1, values + self.kv_heads, self.head_dim)
        return heads[:, :keys], heads[:, keys:values], heads[:, values:]


def _read(checkpoint: Path, dtype: DType) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by their names."""
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                found[name.removeprefix("model.")] = tensors.get_tensor(name).astype(dtype.numpy)
    return found


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 keeps all of rope in one entry; older checkpoints have rope_theta beside it.
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    return {"rope_theta": config["rope_theta"], **found} if "rope_theta" in config else found
