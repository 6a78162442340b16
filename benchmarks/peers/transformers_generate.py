"""transformers on the same checkpoint and prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from worker import serve

NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_models: dict[str, Any] = {}


def warm(
    checkpoint: str, dtype: str, prompts: list[list[int]], new: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call that generates all; the tokens of the first."""
    transformers.logging.set_verbosity_error()
    if dtype not in _models:
        _models.clear()
        auto = transformers.AutoModelForCausalLM
        _models[dtype] = auto.from_pretrained(checkpoint, dtype=NAMES[dtype]).eval()
    model, ids = _models[dtype], torch.tensor(prompts)
    options = {
        "attention_mask": torch.ones_like(ids),
        "do_sample": False,
        "max_new_tokens": new,
        "min_new_tokens": new,
        "pad_token_id": 0,
    }

    @torch.inference_mode()
    def call() -> list[list[int]]:
        found: list[list[int]] = model.generate(ids, **options)[:, ids.shape[1] :].tolist()
        return found

    return call, {"tokens": call()}


if __name__ == "__main__":
    serve(warm)
