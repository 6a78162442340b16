"""Checkpoints: a folder with the config and the weights of a Llama-shaped model, if one is here.

The model that is looked for is SmolLM2-135M-Instruct, which ``examples/fetch_model.py`` keeps in
the user's cache. Weights are read as NumPy arrays, by no framework.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sagellm_backend.conformance.llama import Array, Shape, Weights
from sagellm_backend.conformance.safetensors import read_tensors
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import InvalidArgumentError

VARIABLE = "SAGELLM_CONFORMANCE_MODEL"
"""The environment variable that names the folder of another checkpoint."""

NAME = "SmolLM2-135M-Instruct"
POSITIONS = 128
"""What sequences of the suite do not exceed."""

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_PARTS = {
    "q": ("self_attn.q_proj",),
    "k": ("self_attn.k_proj",),
    "v": ("self_attn.v_proj",),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "norm": ("input_layernorm",),
    "mlp_norm": ("post_attention_layernorm",),
}
_REQUIRED = {"model_type": "llama", "hidden_act": "silu"}
_UNSUPPORTED = ("attention_bias", "mlp_bias", "quantization_config")


def locate() -> Path | None:
    """The folder of the checkpoint of this machine: that of :data:`VARIABLE`, or of the cache.

    ``None`` if the cache has none. Raises :class:`InvalidArgumentError` if the variable names a
    folder without one: a checkpoint that was asked for is not left out in silence.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not (Path(named) / _WEIGHTS).is_file():
            raise InvalidArgumentError(
                f"{VARIABLE} is {named!r}, where there is no {_WEIGHTS}.",
                hint="Unset it, or name the folder that examples/fetch_model.py printed.",
            )
        return Path(named).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    cache = Path(home) if home else Path("~/.cache").expanduser()
    found = cache / "sagellm-backend" / NAME
    return found if found.is_dir() else None


class Checkpoint:
    """A model in a folder. Raises :class:`InvalidArgumentError` for one that is not Llama-shaped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            text = (folder / _CONFIG).read_bytes()
            self._tensors = read_tensors(folder / _WEIGHTS)
        except OSError as error:
            raise self._refusal(str(error)) from error
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._refusal(f"{_CONFIG} is no JSON: {error}") from error
        self.shape = self._shape(config)
        self._tied = bool(config.get("tie_word_embeddings"))

    @cached_property
    def digest(self) -> str:
        """``sha256:`` of shape and tensors by name, in whatever order a file has them."""
        shape = {**vars(self.shape), "positions": None, "tied": self._tied}
        found = hashlib.sha256(repr(sorted(shape.items())).encode())
        for name, array in self._tensors.items():
            found.update(repr((name, dtype_of(array).value, array.shape)).encode())
            found.update(array.data if array.dtype.isbuiltin else array.view(np.uint8).data)
        return f"sha256:{found.hexdigest()}"

    def weights(self, dtype: DType) -> Weights:
        """The weights, rounded to ``dtype``."""
        embed = self._tensor("model.embed_tokens", dtype)
        made = {
            "embed": embed,
            "head": embed if self._tied else self._tensor("lm_head", dtype),
            "norm": self._tensor("model.norm", dtype),
        }
        for layer in range(self.shape.layers):
            for name, parts in _PARTS.items():
                found = [self._tensor(f"model.layers.{layer}.{part}", dtype) for part in parts]
                made[f"{layer}.{name}"] = found[0] if len(found) == 1 else np.concatenate(found)
        return made

    def _tensor(self, name: str, dtype: DType) -> Array:
        found = self._tensors.get(f"{name}.weight")
        if found is None:
            raise self._refusal(f"it has no {name}.weight")
        return found.astype(dtype.numpy)

    def _shape(self, config: Any) -> Shape:
        if not isinstance(config, Mapping):
            raise self._refusal(f"{_CONFIG} is no object")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        odd = [
            f"{key} is {config.get(key)!r}"
            for key in _REQUIRED
            if config.get(key) != _REQUIRED[key]
        ]
        odd += [f"{key} is {config[key]!r}" for key in _UNSUPPORTED if config.get(key)]
        if not isinstance(rope, Mapping):
            raise self._refusal(f"its rope parameters are {rope!r}")
        if rope.get("rope_type", "default") != "default":
            odd.append(f"rope_type is {rope['rope_type']!r}")
        if odd:
            raise self._refusal(", ".join(odd))
        try:
            heads = int(config["num_attention_heads"])
            return Shape(
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads", heads)),
                head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
                positions=POSITIONS,
                eps=float(config["rms_norm_eps"]),
                base=float(rope.get("rope_theta") or config.get("rope_theta", 10000.0)),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise self._refusal(f"{_CONFIG}: {error!r}") from error

    def _refusal(self, reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"{self._folder} holds no checkpoint to examine with: {reason}."
        )
