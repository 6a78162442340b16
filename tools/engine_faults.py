"""Show the faults of isagellm-core 0.5.4.26 that docs/engines.md tells of.

To be run where the engine is installed with our packages, one process for each fault:

    python tools/engine_faults.py unequal [--model CHECKPOINT]

The last line says whether the fault was seen. The exit status is 0 if it was, and 1 if it was not.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import torch
import transformers
from fetch_model import fetch

from sagellm_backend.attention import PagedAttentionBackend, PagedAttentionMetadataBuilder
from sagellm_backend.cpu.provider import CPUBackendProvider

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived an old",
    "Water",
)
PATIENCE_S = 30
Work = Callable[[Any], Awaitable[Any]]


def run(model: str, work: Work, **settings: Any) -> Any:
    """What ``work`` makes of a started engine."""
    core = import_module("sagellm_core")

    async def main() -> Any:
        config = core.LLMEngineConfig(model_path=model, backend_type="cpu", **settings)
        engine = core.LLMEngine(config)
        await engine.start()
        try:
            return await work(engine)
        finally:
            # After a failure of its driver, stop() raises that again.
            await asyncio.gather(engine.stop(), return_exceptions=True)

    return asyncio.run(main())


async def generate(engine: Any, prompt: str, count: int) -> Any:
    """The tokens of a prompt, or the exception that came instead of them."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return (await engine.generate(prompt, max_tokens=count)).output_tokens
    except Exception as error:  # noqa: BLE001 - failures are what is looked for
        return error


async def stream(engine: Any, prompt: str, count: int) -> list[int]:
    """The tokens of a prompt, streamed."""
    found: list[int] = []
    async for event in engine.stream(prompt, max_tokens=count):
        found += getattr(event, "content_tokens", None) or []
    return found


async def together(one: Any, engine: Any, counts: tuple[int, ...]) -> list[Any]:
    """All prompts at once."""
    work = (one(engine, *pair) for pair in zip(PROMPTS, counts, strict=True))
    return list(await asyncio.gather(*work, return_exceptions=True))


def alone(model: str, count: int) -> list[list[int]]:
    """The greedy tokens that transformers gives for each prompt alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network.generation_config.eos_token_id = None
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        mask = torch.ones_like(ids)
        out = network.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=count, pad_token_id=0
        )
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def announce_paged(*, numbered: bool) -> None:
    """Let the engine take its paged path; with block numbers for its UUIDs if ``numbered``."""
    provider: Any = CPUBackendProvider
    provider.get_attention_backend = lambda self, _name=None: PagedAttentionBackend(self)
    if not numbered:
        return
    runner = import_module("sagellm_core.worker.model_runner.model_runner").ModelRunner
    made = runner._build_block_tables_tensor  # noqa: SLF001 - there is no public place
    numbers: dict[UUID, int] = {}

    def build(self: Any, tables: Any, **options: Any) -> Any:
        rows = [[numbers.setdefault(block, len(numbers)) for block in row] for row in tables]
        return made(self, rows, **options)

    runner._build_block_tables_tensor = build  # noqa: SLF001


def watch_tables() -> list[str]:
    """The reasons why block tables are refused, as they come."""
    refused: list[str] = []
    build = PagedAttentionMetadataBuilder._build  # noqa: SLF001

    def watched(self: Any, *arguments: Any) -> Any:
        try:
            return build(self, *arguments)
        except ValueError as error:
            refused.append(str(error))
            raise

    PagedAttentionMetadataBuilder._build = watched  # noqa: SLF001
    return refused


def uuid(model: str) -> bool:
    """Block tables hold UUIDs: a stream raises, and a batch never returns."""
    announce_paged(numbered=False)
    streams = run(model, lambda engine: together(stream, engine, (4, 4, 4)))
    batch = run(model, lambda engine: together(generate, engine, (4, 4, 4)))
    print("streams:", streams, "\nbatch:", batch)
    return all("UUID" in str(item) for item in streams) and is_hung(batch)


def growth(model: str) -> bool:
    """With numbers for UUIDs: batches are right up to the first block boundary, and then fail."""
    announce_paged(numbered=True)
    refused = watch_tables()
    short = run(model, lambda engine: together(generate, engine, (8, 8, 8)))
    batch = run(model, lambda engine: together(generate, engine, (24, 24, 24)))
    streams = run(model, lambda engine: together(stream, engine, (24, 24, 24)))
    expected = alone(model, 24)
    print("8 tokens, batch, right:", short == [tokens[:8] for tokens in expected])
    print("24 tokens, batch:", batch, refused)
    print("24 tokens, streams, right:", streams == expected)
    return is_hung(batch) and bool(refused)


def prefix(model: str) -> bool:
    """With numbers for UUIDs: a prompt met before gets a table that names a block twice."""
    announce_paged(numbered=True)
    refused = watch_tables()
    prompt = PROMPTS[1] * 2

    async def work(engine: Any) -> None:
        for _ in range(6):
            await asyncio.gather(stream(engine, prompt, 2), return_exceptions=True)

    run(model, work, enable_prefix_cache=False)
    print("refused without prefix cache:", refused)
    clean = not refused
    run(model, work)
    print("refused with prefix cache:", refused)
    return clean and bool(refused)


def unequal(model: str) -> bool:
    """Prompts of unequal lengths at once, on the default path: wrong tokens."""
    found = run(model, lambda engine: together(generate, engine, (8, 8, 8)))
    expected = alone(model, 8)
    for tokens, wanted in zip(found, expected, strict=True):
        print("right" if tokens == wanted else f"{tokens} instead of {wanted}")
    return bool(found != expected)


def limits(model: str) -> bool:
    """Streams at once with different max_tokens, on the default path: all fail."""
    found = run(model, lambda engine: together(stream, engine, (4, 12, 8)))
    print(found)
    return all(isinstance(item, IndexError) for item in found)


def dtype(model: str) -> bool:
    """dtype='fp16' and 'bf16' load float32."""
    found = {}
    for word in ("fp16", "bf16", "float16", "bfloat16"):

        async def work(engine: Any) -> set[torch.dtype]:
            await generate(engine, PROMPTS[0], 1)
            kind = transformers.PreTrainedModel
            return {item.dtype for item in gc.get_objects() if isinstance(item, kind)}

        found[word] = run(model, work, dtype=word)
        gc.collect()
        print(word, "loads", *found[word])
    return bool(found["fp16"] == found["bf16"] == {torch.float32})


def hang(model: str) -> bool:
    """An exception inside a kernel: generate() never returns, nor does any later one."""
    kernels = CPUBackendProvider._engine_kernels  # noqa: SLF001
    calls = 0

    def failing(self: Any) -> dict[str, Any]:
        table = kernels(self)
        embedding = table["embedding"]

        def kernel(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise RuntimeError("one call fails")
            return embedding(*arguments)

        return {**table, "embedding": kernel}

    CPUBackendProvider._engine_kernels = failing  # type: ignore[method-assign]  # noqa: SLF001

    async def work(engine: Any) -> list[Any]:
        return [await generate(engine, PROMPTS[0], 6) for _ in range(2)]

    found = run(model, work)
    print(found)
    return is_hung(found)


def gemma2(model: str) -> bool:
    """A Gemma 2: wrong tokens, one prompt alone."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config = transformers.Gemma2Config(**sizes, initializer_range=0.3, tie_word_embeddings=False)
    network = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in network.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found = run(folder, lambda engine: generate(engine, PROMPTS[0], 8))
        expected = alone(folder, 8)[0]
    print(f"{found} instead of {expected}")
    return bool(found != expected)


def is_hung(results: list[Any]) -> bool:
    """Whether no result came in time."""
    return all(isinstance(item, TimeoutError) for item in results)


FAULTS = {
    item.__name__: item for item in (uuid, growth, prefix, unequal, limits, dtype, hang, gemma2)
}


def main() -> int:
    """Show one fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("fault", choices=FAULTS)
    parser.add_argument("--model", help="a checkpoint of transformers; SmolLM2-135M by default")
    chosen = parser.parse_args()
    fault = FAULTS[chosen.fault]
    seen = fault(chosen.model or os.fspath(fetch()))
    print(f"{'seen' if seen else 'NOT SEEN'}: {fault.__doc__}")
    return int(not seen)


if __name__ == "__main__":
    raise SystemExit(main())
