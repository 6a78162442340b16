"""Tokens of small models through the engine are those of transformers, in every mode and dtype."""

from __future__ import annotations

import pytest
import torch
from checkpoints import ARCHITECTURES, VOCAB, make
from greedy import Greedy
from sagellm_protocol import DecodingStrategy, SamplingParams
from serving import serve

COUNT = 64
LENGTH = 12
PROMPTS = [
    "".join(chr(ord("A") + (5 + 3 * row + column * (row + 2)) % 26) for column in range(LENGTH))
    for row in range(10)
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def get(architecture):
        if architecture not in made:
            made[architecture] = make(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return get


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_identical_in_every_mode(checkpoint, architecture):
    path = checkpoint(architecture)
    greedy = Greedy(path, "float32")
    assert {greedy.ids(prompt).shape for prompt in PROMPTS} == {(1, LENGTH)}
    wanted = [greedy.tokens(prompt, COUNT) for prompt in PROMPTS]
    with serve(path, dtype="float32") as server:
        assert server.batch(PROMPTS, COUNT) == wanted
        assert server.generate(PROMPTS[1], COUNT) == wanted[1]
        assert server.execute(PROMPTS[2], COUNT) == wanted[2]
        assert server.stream(PROMPTS[3], COUNT) == (wanted[3], wanted[3])
        assert server.generate(PROMPTS[1], COUNT) == wanted[1]
    assert len({tuple(tokens) for tokens in wanted}) == len(PROMPTS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_types_differ_only_where_the_type_cannot_tell(checkpoint, architecture, dtype):
    path = checkpoint(architecture)
    greedy = Greedy(path, dtype)
    with serve(path, dtype=dtype) as server:
        found = [*server.batch(PROMPTS, COUNT), server.generate(PROMPTS[0], COUNT)]
        streamed, end = server.stream(PROMPTS[3], COUNT)
    assert streamed == end
    for prompt, tokens in zip([*PROMPTS, PROMPTS[0], PROMPTS[3]], [*found, end], strict=True):
        assert len(tokens) == COUNT
        greedy.check(prompt, tokens)


def test_one_large_activation_is_no_matter_in_float16(tmp_path):
    path = make(tmp_path, "llama", outlier=400.0)  # 400 squared is beyond float16
    greedy = Greedy(path, "float16")
    with serve(path, dtype="float16") as server:
        found = server.batch(PROMPTS[:3], 16)
    for prompt, tokens in zip(PROMPTS, found, strict=False):
        greedy.check(prompt, tokens)
    assert any(set(tokens) != {0} for tokens in found)


# In Llama the engine computes q, k, v and o with the weights from before their quantisation.
@pytest.mark.parametrize(("architecture", "left"), [("llama", "self_attn"), ("mistral", "nothing")])
def test_fp8_weights(checkpoint, architecture, left):
    path = checkpoint(architecture)
    greedy = Greedy(path, "float32")
    with torch.no_grad():
        for name, module in greedy.model.named_modules():
            if isinstance(module, torch.nn.Linear) and left not in name:
                scale = module.weight.abs().max() / 448
                codes = (module.weight / scale).to(torch.float8_e4m3fn)
                module.weight.copy_(codes.float() * scale)
    wanted = [greedy.tokens(prompt, 16) for prompt in PROMPTS[:3]]
    with serve(path, dtype="float32", quantization="fp8") as server:
        assert server.batch(PROMPTS[:3], 16) == wanted
        assert server.generate(PROMPTS[0], 16) == wanted[0]


def test_sampling(checkpoint):
    path = checkpoint("llama")
    drawn = SamplingParams(
        strategy=DecodingStrategy.SAMPLING, temperature=1.5, top_p=0.95, top_k=50
    )
    with serve(path) as server:
        found = [server.generate(PROMPTS[0], 16, sampling_params=drawn) for _ in range(4)]
        narrow = server.generate(PROMPTS[0], 16, temperature=0.7, top_k=1)
        greedy = server.generate(PROMPTS[0], 16)
    assert all(len(tokens) == 16 and set(tokens) <= set(range(VOCAB)) for tokens in found)
    assert len(set(map(tuple, found))) > 1
    assert narrow == greedy


def test_the_engine_says_what_it_runs_on(checkpoint):
    with serve(checkpoint("llama"), backend_type="cpu") as server:
        server.generate(PROMPTS[0], 2)
        info = server.engine.get_info()
        described = server.engine.capabilities()
    assert info["device_type"] == "cpu"
    availability = info["performance_mainline"]["attention_backend_availability"]
    assert set(availability) == {"engine", "paged"}
    assert info["performance_mainline"]["attention_diagnostics_snapshot"]["_meta"] is not None
    assert described
