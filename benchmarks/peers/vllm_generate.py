"""vLLM on the same checkpoint and prompts, with what it chooses by itself on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# One process, as ours is one, and all processors for it.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault(
    "VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0))))
)
os.environ.setdefault("TQDM_DISABLE", "1")

from vllm import LLM, SamplingParams
from worker import serve

NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_engines: dict[str, Any] = {}


def warm(
    checkpoint: str, dtype: str, prompts: list[list[int]], new: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call that generates all; the tokens of the first."""
    if dtype not in _engines:
        _engines[dtype] = LLM(
            checkpoint,
            dtype=NAMES[dtype],
            max_model_len=1024,
            max_num_seqs=8,
            enable_prefix_caching=False,  # the prompts are the same in every run
            disable_log_stats=True,
        )
    engine = _engines[dtype]
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)

    def call() -> list[list[int]]:
        done = engine.generate(given, params, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in done]

    return call, {"tokens": call()}


if __name__ == "__main__":
    serve(warm)
