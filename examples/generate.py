"""Chat with a Llama-architecture model on nothing but the public interface of sagellm-backend.

    python examples/generate.py "What is the capital of France?"
    python examples/generate.py "Name a colour." "Count to five." --max-new-tokens 32 --dtype bf16
    python examples/generate.py --weights int8 "Why is the sky blue?"
    python examples/generate.py --checkpoint DIR --backend cpu --temperature 0.7 "Tell me a story."

Several prompts share one paged KV cache: new sequences join and finished ones leave between any two
steps, and a step computes prompts and single tokens of different sequences together.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fetch_model import fetch
from llama import Llama, Sequence, operations

from sagellm_backend import BackendError, DType, KVPool, Requirements, get_provider


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


class Generator:
    """Continuous batching: as many sequences at once as the pool has blocks for."""

    def __init__(self, model: Llama, pool: KVPool, sampling: Sampling, stop: Iterable[int]) -> None:
        self.model, self.pool, self.sampling, self.stop = model, pool, sampling, set(stop)
        self.rng = np.random.default_rng(sampling.seed)

    def run(self, prompts: list[list[int]], max_new: int) -> Iterator[tuple[Sequence, bool]]:
        """Yield each sequence after each of its tokens, and whether that was the last one."""
        limit = self.model.config["max_position_embeddings"]
        longest = max(len(tokens) for tokens in prompts) + max_new
        if max_new < 1 or longest > limit or not all(prompts):
            raise ValueError(
                f"Prompts of 1 token or more and max_new_tokens of 1 or more must fit into "
                f"{limit} positions; max_new_tokens is {max_new}, the longest needs {longest}."
            )
        waiting = [
            Sequence(index, list(tokens), len(tokens), len(tokens) + max_new, np.array(tokens))
            for index, tokens in enumerate(prompts)
        ]
        running: list[Sequence] = []
        while waiting or running:
            while waiting and self._admit(waiting[0]):
                running.append(waiting.pop(0))
            logits = self.model.step(running, self.pool)
            next_ids = self._choose(logits, len(running))
            for sequence, token in zip(list(running), next_ids, strict=True):
                sequence.tokens.append(token)
                sequence.pending = np.array([token])
                done = token in self.stop or len(sequence.tokens) >= sequence.max_length
                if done:
                    running.remove(sequence)
                    self.pool.free(sequence.blocks)
                yield sequence, done

    def _admit(self, sequence: Sequence) -> bool:
        # All blocks are taken at once, so that a running sequence never has to wait for one.
        needed = self.pool.layout.blocks_for(sequence.max_length)
        if needed > self.pool.num_blocks:
            raise ValueError(
                f"A prompt needs {needed} blocks, the pool has {self.pool.num_blocks}."
            )
        if needed > self.pool.num_free:
            return False
        sequence.blocks = self.pool.alloc(needed)
        return True

    def _choose(self, logits: Any, count: int) -> list[int]:
        backend, how, op = self.model.backend, self.sampling, self.model.op
        if how.temperature == 0:
            drawn = op["greedy_sample"](logits)
        else:
            rows = (
                self.rng.random(count, np.float32),
                np.full(count, how.temperature, np.float32),
                np.full(count, how.top_k, np.int32),
                np.full(count, how.top_p, np.float32),
            )
            drawn = op["sample"](logits, *(backend.from_numpy(row) for row in rows))
        return [int(token) for token in backend.to_numpy(drawn)]


class Printer:
    """Prints one answer as it comes, several as each is finished."""

    def __init__(self, tokenizer: Any, prompts: list[str], stop: set[int]) -> None:
        self.tokenizer, self.prompts, self.stop, self.printed = tokenizer, prompts, stop, 0

    def show(self, sequence: Sequence, done: bool) -> None:
        """Print what is new; a character of several tokens waits for its last one."""
        words = [token for token in sequence.generated if token not in self.stop]
        text = self.tokenizer.decode(words)
        if len(self.prompts) > 1:
            if done:
                print(f"> {self.prompts[sequence.index]}\n{text}\n", flush=True)
        elif done or not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[self.printed :], end="\n\n" if done else "", flush=True)
            self.printed = len(text)


def stop_tokens(checkpoint: Path, config: dict[str, Any]) -> set[int]:
    """The ids that end an answer, by the checkpoint's own word."""
    file = checkpoint / "generation_config.json"
    given = json.loads(file.read_text()) if file.exists() else {}
    ends = given.get("eos_token_id", config.get("eos_token_id")) or []
    return set(ends) if isinstance(ends, list) else {ends}


def encode(tokenizer: Any, prompt: str, raw: bool) -> list[int]:
    """The prompt's tokens, as a chat turn unless ``raw`` or the checkpoint has no chat template."""
    if raw or not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Chat with a small model on any backend.")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--backend", default="auto", help="cpu, cuda, ...; default: the best here")
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or fp16")
    parser.add_argument("--weights", choices=("int8",), help="default: as --dtype says")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: SmolLM2-135M")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--max-tokens", type=int, default=16384, metavar="N", help="KV pool size")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raw", action="store_true", help="do not use the chat template")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Answer the prompts; 1 with one line if that cannot be done."""
    args = parse_args(argv)
    try:
        answer(args)
    except (BackendError, OSError, RuntimeError, ValueError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 1
    return 0


def answer(args: argparse.Namespace) -> None:
    """Load the model, stream the answers, and say how fast that went."""
    import transformers

    dtype, checkpoint = DType.parse(args.dtype), args.checkpoint or fetch()
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint: it has no config.json.")
    backend = get_provider(args.backend)
    int8 = args.weights == "int8"
    needed = dict.fromkeys(operations(int8=int8), (dtype,))
    backend.capability().require(Requirements(operation_dtypes=needed))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = Llama(backend, checkpoint, dtype, int8=int8)
    layout = model.kv_layout()
    stop = stop_tokens(checkpoint, model.config)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    prompts = [encode(tokenizer, prompt, args.raw) for prompt in args.prompts]
    printer = Printer(tokenizer, args.prompts, stop)
    with backend, backend.kv_pool(layout, layout.blocks_for(args.max_tokens)) as pool:
        generator = Generator(model, pool, sampling, stop)
        started, count = time.perf_counter(), 0
        for sequence, done in generator.run(prompts, args.max_new_tokens):
            printer.show(sequence, done)
            count += 1
        seconds = time.perf_counter() - started
    print(
        f"{count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s "
        f"({backend.capability().device_name}, {backend.name}, {dtype.value}"
        f"{', int8 weights' if int8 else ''})"
    )


if __name__ == "__main__":
    sys.exit(main())
