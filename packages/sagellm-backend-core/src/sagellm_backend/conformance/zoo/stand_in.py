"""A checkpoint that stands in for the trained one: small, seeded, in the same format.

The zoo must not depend on what a machine has in its cache, nor take minutes for a model.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sagellm_backend.conformance.tiny_llama import HIDDEN, INNER, TINY, make_weights
from sagellm_backend.dtypes import DType

VOCABULARY = 9600
"""Enough for the ids of the suite's prompts."""

_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "down": "mlp.down_proj",
    "norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


@cache
def stand_in() -> Path:
    """The folder of the checkpoint, which is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="sagellm-checkpoint-"))
    weakref.finalize(stand_in, shutil.rmtree, folder, ignore_errors=True)
    write_checkpoint(folder)
    return folder


def write_checkpoint(folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a model of two layers."""
    config = {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": TINY.layers,
        "num_attention_heads": TINY.heads,
        "num_key_value_heads": TINY.kv_heads,
        "rms_norm_eps": TINY.eps,
        "rope_theta": TINY.base,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(as_safetensors(_tensors()))


def as_safetensors(tensors: Mapping[str, Any]) -> bytes:
    """Arrays of fp32 as the contents of a safetensors file."""
    header, data = {}, b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        entry = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(data), end]}
        header[name], data = entry, data + array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _tensors() -> dict[str, Any]:
    made = make_weights(np.random.default_rng(20261), DType.FP32, vocabulary=VOCABULARY)
    found = {"model.embed_tokens.weight": made["embed"], "model.norm.weight": made["norm"]}
    for layer in range(TINY.layers):
        start = f"model.layers.{layer}"
        for ours, theirs in _LAYER.items():
            found[f"{start}.{theirs}.weight"] = made[f"{layer}.{ours}"]
        gate, up = np.split(made[f"{layer}.gate_up"], 2)
        found |= {f"{start}.mlp.gate_proj.weight": gate, f"{start}.mlp.up_proj.weight": up}
    return found
