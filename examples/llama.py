"""A Llama-architecture decoder on nothing but the public interface of sagellm-backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from sagellm_backend import BackendProvider, DType, KVLayout, KVPool
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


class Llama:
    """The decoder: weights on the device, and one forward step over a batch of sequences.

    With ``int8`` the weights of all products are, the head's too; the embedding looks up rows of
    ``dtype``.
    """

    def __init__(
        self, backend: BackendProvider, checkpoint: Path, dtype: DType, *, int8: bool = False
    ) -> None:
        self.backend = backend
        self.config = json.loads((checkpoint / "config.json").read_text())
        self._refuse_unknown()
        self.heads: int = self.config["num_attention_heads"]
        self.kv_heads: int = self.config.get("num_key_value_heads") or self.heads
        self.head_dim: int = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        self.layers: int = self.config["num_hidden_layers"]
        self.dtype = dtype
        self.int8 = int8
        self.op = {name: backend.get_kernel(name, dtype=dtype) for name in operations(int8=int8)}
        self.product = self.op["linear_w8a16" if int8 else "linear"]
        self.weights = dict(self._load(checkpoint))
        tied = self.config.get("tie_word_embeddings")
        self.head = self.weights["head" if tied else "lm_head.weight"]
        theta = _rope(self.config).get("rope_theta", 10000.0)
        positions = self.config["max_position_embeddings"]
        self.cos_sin = backend.from_numpy(rope_cache(positions, self.head_dim, base=theta))

    def _refuse_unknown(self) -> None:
        kind, rope = self.config.get("model_type"), _rope(self.config).get("rope_type", "default")
        if kind != "llama" or rope != "default":
            raise ValueError(
                f"This example speaks llama with default rope, not {kind} with {rope}."
            )

    def _load(self, checkpoint: Path) -> Iterator[tuple[str, Any]]:
        halves: dict[str, np.ndarray] = {}
        tied = self.config.get("tie_word_embeddings", False)
        for file in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    array = tensors.get_tensor(name).astype(self.dtype.numpy)
                    short = name.removeprefix("model.")
                    if short.endswith(("gate_proj.weight", "up_proj.weight")):
                        halves[short] = array
                    elif short.endswith("_proj.weight") or short == "lm_head.weight":
                        yield short, self._matrix(array)
                    else:
                        kept = self.backend.from_numpy(array)
                        yield short, kept
                        if short == "embed_tokens.weight" and tied:
                            yield "head", self._matrix(array) if self.int8 else (kept,)
        for layer in range(self.layers):
            pair = [halves.pop(f"layers.{layer}.mlp.{half}_proj.weight") for half in ("gate", "up")]
            yield f"layers.{layer}.mlp.gate_up_proj.weight", self._matrix(np.concatenate(pair))

    def _matrix(self, array: np.ndarray) -> tuple[Any, ...]:
        """What a product takes for its weight: the matrix, or int8 and scales."""
        parts = quantize_int8(array) if self.int8 else (array,)
        return tuple(self.backend.from_numpy(part) for part in parts)

    def kv_layout(self) -> KVLayout:
        """The layout of a KV pool for this model."""
        return KVLayout(self.layers, self.kv_heads, self.head_dim, BLOCK_SIZE, self.dtype)

    def step(self, batch: list[Sequence], pool: KVPool) -> Any:
        """Logits of the next token of each sequence, after computing its pending tokens."""
        op, backend = self.op, self.backend
        metadata = backend.attention_metadata(
            [len(sequence.pending) for sequence in batch],
            [len(sequence.tokens) for sequence in batch],
            [sequence.blocks.tolist() for sequence in batch],
            BLOCK_SIZE,
        )
        ids = backend.from_numpy(np.concatenate([sequence.pending for sequence in batch]))
        positions = backend.from_numpy(metadata.positions())
        slots = backend.from_numpy(metadata.slots())
        eps, scale = self.config["rms_norm_eps"], self.head_dim**-0.5

        residual = op["embedding"](ids, self.weights["embed_tokens.weight"])
        x = op["rms_norm"](residual, self._norm(0, "input"), eps)
        for layer in range(self.layers):
            q, k, v = (
                self._linear(x, layer, f"self_attn.{name}_proj").reshape(-1, heads, self.head_dim)
                for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
            )
            q, k = op["rope"](q, k, positions, self.cos_sin)
            keys, values = pool.key_cache(layer), pool.value_cache(layer)
            op["kv_write"](k, v, keys, values, slots)
            x = op["attention"](q, keys, values, metadata, scale=scale)
            x = self._linear(x.reshape(-1, self.heads * self.head_dim), layer, "self_attn.o_proj")
            x, residual = op["add_rms_norm"](x, residual, self._norm(layer, "post_attention"), eps)
            x = op["silu_and_mul"](self._linear(x, layer, "mlp.gate_up_proj"))
            x = self._linear(x, layer, "mlp.down_proj")
            x, residual = op["add_rms_norm"](x, residual, self._norm(layer + 1, "input"), eps)
        last = backend.from_numpy(metadata.cu_query[1:] - 1)
        return self.product(op["embedding"](last, x), *self.head)

    def _linear(self, x: Any, layer: int, name: str) -> Any:
        name = f"layers.{layer}.{name}"
        return self.product(x, *self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _norm(self, layer: int, name: str) -> Any:
        if layer == self.layers:
            return self.weights["norm.weight"]
        return self.weights[f"layers.{layer}.{name}_layernorm.weight"]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 keeps all of rope in one entry; older checkpoints have rope_theta beside it.
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    return {"rope_theta": config["rope_theta"], **found} if "rope_theta" in config else found
