"""vLLM's C++ attention for CPUs, on the queries and the cache that another process saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
from worker import serve

BLOCK = 128  # vLLM's own choice on CPUs
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def warm(
    folder: str, dtype: str, query: int, context: int, scale: float
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Lay the tokens out in blocks of vLLM's, by its own kernel, and return the call of a step."""
    current_platform.import_kernels()
    torch.cpu._init_amx()  # noqa: SLF001 - as the worker of vLLM does
    kind = DTYPES[dtype]
    q, k, v = (torch.from_numpy(np.load(Path(folder) / f"{name}.npy")).to(kind) for name in "qkv")
    table = torch.from_numpy(np.load(Path(folder) / "table.npy")).long()
    batch, (kv_heads, width) = len(table), k.shape[2:]
    keys, values = (each[table].reshape(batch, -1, kv_heads, width)[:, :context] for each in (k, v))
    isa = _get_attn_isa(kind, BLOCK, width)
    cache, blocks = store(keys, values, isa)
    starts = torch.arange(batch + 1, dtype=torch.int32) * query
    lengths = torch.full((batch,), context, dtype=torch.int32)
    output = torch.empty_like(q)
    sizes = (batch, q.shape[1], kv_heads, width, lengths, kind, starts, True, -1, isa, True)
    plan = ops.cpu_attn_get_scheduler_metadata(*sizes)

    def call() -> None:
        ops.cpu_attention_with_kv_cache(
            query=q,
            key_cache=cache[0],
            value_cache=cache[1],
            output=output,
            query_start_loc=starts,
            seq_lens=lengths,
            scale=scale,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=blocks,
            softcap=0.0,
            scheduler_metadata=plan,
            s_aux=None,
        )

    call()
    np.save(Path(folder) / "result.npy", output.float().numpy())
    return call, {"isa": isa, "block": BLOCK, "threads": torch.get_num_threads()}


def store(
    keys: torch.Tensor, values: torch.Tensor, isa: str
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The (batch, tokens, heads, width) keys and values in a cache of vLLM's, and its block table."""
    batch, context, heads, width = keys.shape
    each = -(-context // BLOCK)
    memory = torch.zeros((batch * each, heads, 2 * BLOCK, width), dtype=keys.dtype)
    halves = memory[:, :, :BLOCK], memory[:, :, BLOCK:]
    order = torch.randperm(batch * each, generator=torch.Generator().manual_seed(0))
    blocks = order.reshape(batch, each).int()
    place = torch.arange(context)
    slots = blocks[:, place // BLOCK].long() * BLOCK + place % BLOCK
    for row in range(batch):
        ops.cpu_attn_reshape_and_cache(keys[row], values[row], *halves, slots[row], isa)
    return halves, blocks


if __name__ == "__main__":
    serve(warm)
