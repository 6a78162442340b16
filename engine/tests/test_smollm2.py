"""The usage example of the original README on SmolLM2, and its tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from greedy import Greedy
from serving import serve

EXAMPLE = """
import asyncio, json, os, sys
before = dict(os.environ)
from sagellm_core.llm_engine import LLMEngine, LLMEngineConfig

async def main():
    engine = LLMEngine(LLMEngineConfig(model_path=sys.argv[1], backend_type="auto"))
    await engine.start()
    response = await engine.generate("The capital of France is", max_tokens=12)
    await engine.stop()
    return response

response = asyncio.run(main())
changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
import sagellm_backend
home = sagellm_backend.get_provider.__module__, sagellm_backend.__file__
print(json.dumps([response.output_text, response.output_tokens, sorted(changed), home]))
"""
TEXT = (
    "A pool of blocks holds the keys and values of every sequence that the server works on at the "
    "moment. When a sequence grows over the end of its last block, it is given another one, and "
    "when it ends, its blocks go back to the pool. Nothing is moved, so that a thousand sequences "
    "of unequal lengths can share the memory of one device, and none of them waits for another."
)
LENGTH, COUNT = 8, 64


@pytest.fixture(scope="module")
def path():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "examples/fetch_model.py"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def greedy(path):
    return Greedy(path, "float32")


def test_the_example_of_the_readme(path, greedy, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE, str(path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        timeout=240,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    text, tokens, changed, (module, file) = json.loads(done.stdout.splitlines()[-1])
    assert text.startswith(" Paris")
    assert len(tokens) == 12
    greedy.check("The capital of France is", tokens)
    assert not list(tmp_path.iterdir()), "the working directory was written to"
    assert not [name for name in changed if not name.startswith(("TOKENIZERS", "KMP"))]
    assert module == "sagellm_backend.registry"
    assert Path(file).with_name("cpu").is_dir()


def prompts(tokenizer):
    """Ten texts of as many tokens each."""
    found = []
    for start in range(0, len(TEXT.split()) - LENGTH, 3):
        words = " ".join(TEXT.split()[start:])
        text = tokenizer.decode(tokenizer(words).input_ids[:LENGTH])
        if len(tokenizer(text).input_ids) == LENGTH:
            found.append(text)
    return found[:10]


def test_ten_prompts_at_once_are_identical_in_float32(path, greedy):
    chosen = prompts(greedy.tokenizer)
    assert len(chosen) == 10
    with serve(path, dtype="float32") as server:
        found = server.batch(chosen, COUNT)
    for prompt, tokens in zip(chosen, found, strict=True):
        assert len(tokens) == COUNT or tokens[-1] == greedy.model.generation_config.eos_token_id
        greedy.check(prompt, tokens)


def test_bfloat16_differs_only_where_the_type_cannot_tell(path):
    half = Greedy(path, "bfloat16")
    with serve(path, dtype="bfloat16") as server:
        found = server.batch(prompts(half.tokenizer), 16)
    for prompt, tokens in zip(prompts(half.tokenizer), found, strict=True):
        half.check(prompt, tokens)
