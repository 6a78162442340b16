"""The example on the simulated device: the tokens that the CPU backend gives."""

from __future__ import annotations

import generate
import pytest
import transformers
from llama import Llama

from sagellm_backend import DType, get_provider

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
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


def tokens_of(name, checkpoint, blocks):
    prompts = [[5, 3, 8, 1], [60], list(range(2, 35))]
    tokens = {}
    with get_provider(name) as backend:
        model = Llama(backend, checkpoint, DType.FP32)
        with backend.kv_pool(model.kv_layout(), blocks) as pool:
            generator = generate.Generator(model, pool, generate.Sampling(), stop=())
            for sequence, done in generator.run(prompts, NEW_TOKENS):
                if done:
                    tokens[sequence.index] = sequence.generated
            assert pool.num_free == pool.num_blocks
    return [tokens[index] for index in range(len(prompts))]


@pytest.mark.parametrize("blocks", [64, 4], ids=["at once", "waiting for blocks"])
def test_a_seeded_model_gives_the_tokens_of_the_cpu(checkpoint, blocks):
    found = tokens_of("kunlun", checkpoint, blocks)
    assert found == tokens_of("cpu", checkpoint, 64)
    assert {len(tokens) for tokens in found} == {NEW_TOKENS}


def test_the_command_answers_as_on_the_cpu(capsys):
    answers = []
    for name in ("kunlun", "cpu"):
        options = ["--backend", name, "--max-new-tokens", "8", "--max-tokens", "64"]
        assert generate.main(["What is the capital of France?", *options]) == 0
        answers.append(capsys.readouterr().out)
    kunlun, cpu = (answer.rpartition("\n\n") for answer in answers)
    assert "Paris" in kunlun[0]
    assert kunlun[0] == cpu[0]
    assert "kunlun" in kunlun[2]
