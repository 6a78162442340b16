"""The example against Hugging Face transformers, on the real model, token by token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

from sagellm_backend import DType, get_provider

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

import generate
from fetch_model import fetch
from llama import Llama

NEW_TOKENS = 64
PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that reverses a string.",
    "Explain why the sky is blue in two sentences.",
    "List three uses of a brick.",
    "Translate 'good morning' into Spanish, French and German, and say how each is pronounced.",
)


@pytest.fixture(scope="module")
def checkpoint():
    return fetch()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [generate.encode(tokenizer, prompt, raw=False) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def expected(checkpoint, prompts):
    """Greedy tokens of transformers, which never stop early."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
        )
        found.append(out[0, len(prompt) :].tolist())
    assert {len(tokens) for tokens in found} == {NEW_TOKENS}
    return found


@pytest.fixture(scope="module")
def model(checkpoint):
    with get_provider("auto") as backend:
        yield Llama(backend, checkpoint, DType.FP32)


def greedy(model, prompts, *, pool_blocks=256, new_tokens=NEW_TOKENS):
    with model.backend.kv_pool(model.kv_layout(), pool_blocks) as pool:
        generator = generate.Generator(model, pool, generate.Sampling(), stop=())
        tokens = {}
        for sequence, done in generator.run(prompts, new_tokens):
            if done:
                tokens[sequence.index] = sequence.generated
        assert pool.num_free == pool.num_blocks
    return [tokens[index] for index in range(len(prompts))]


def test_greedy_tokens_of_each_prompt_alone_are_those_of_transformers(model, prompts, expected):
    assert [greedy(model, [prompt])[0] for prompt in prompts] == expected


def test_greedy_tokens_of_all_prompts_at_once_are_those_of_transformers(model, prompts, expected):
    assert greedy(model, prompts) == expected


def test_sequences_that_wait_for_blocks_get_the_same_tokens(model, prompts, expected):
    longest = max(len(prompt) for prompt in prompts) + NEW_TOKENS
    room_for_two = 2 * model.kv_layout().blocks_for(longest)
    assert greedy(model, prompts, pool_blocks=room_for_two) == expected


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory):
    """A seeded Llama of two layers, with biases, an untied head and grouped heads."""
    transformers.set_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=False,
        max_position_embeddings=128,
    )
    folder = tmp_path_factory.mktemp("small")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backend_name", ["cpu", "reference"])
def test_any_llama_checkpoint_runs_on_any_backend(small_checkpoint, backend_name):
    prompts = [[5, 3, 8, 1], [60], list(range(2, 35))]
    hf = transformers.AutoModelForCausalLM.from_pretrained(small_checkpoint)
    hf.generation_config.eos_token_id = None
    wanted = [
        hf.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        for ids in prompts
    ]
    with get_provider(backend_name) as backend:
        small = Llama(backend, small_checkpoint, DType.FP32)
        found = greedy(small, prompts, new_tokens=12)
    assert found == [out[0, len(ids) :].tolist() for out, ids in zip(wanted, prompts, strict=True)]


def test_the_command_names_paris_and_its_speed(capsys):
    assert generate.main(["What is the capital of France?"]) == 0
    answer = capsys.readouterr().out
    assert "Paris" in answer
    assert "tokens/s" in answer


def test_int8_weights_name_paris_as_well(capsys):
    assert generate.main(["What is the capital of France?", "--weights", "int8"]) == 0
    answer = capsys.readouterr().out
    assert "Paris" in answer
    assert "int8 weights" in answer


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_types_name_paris_as_well(capsys, dtype):
    assert generate.main(["What is the capital of France?", "--dtype", dtype]) == 0
    assert "Paris" in capsys.readouterr().out


def test_sampling_is_repeated_by_its_seed(capsys):
    told = []
    for seed in ("7", "7", "8"):
        options = ["--temperature", "0.9", "--top-p", "0.95", "--max-new-tokens", "12"]
        assert generate.main(["Tell me a story.", *options, "--seed", seed]) == 0
        told.append(capsys.readouterr().out.rpartition("\n\n")[0])
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--backend", "nonsense"], "nonsense"),
        (["--dtype", "fp9"], "fp9"),
        (["--dtype", "int8"], "int8"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--max-tokens", "16"], "blocks"),
    ],
)
def test_what_cannot_be_done_is_said(capsys, options, reason):
    assert generate.main(["Hello", *options]) == 1
    told = capsys.readouterr().err
    assert told.startswith("generate: ")
    assert reason in told
