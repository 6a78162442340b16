"""The paged path of the published engine, step by step, against transformers alone.

The engine is not needed: the harness calls attention as isagellm-core 0.5.4.26 does. The rest of the
model is transformers' own, so that a wrong token is attention's.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AttentionInterface

from sagellm_backend import get_provider
from sagellm_backend.attention.paged_metadata import PagedAttentionMetadataBuilder
from sagellm_backend.torch_support.paged_attention import PagedAttentionBackend

BLOCK, BLOCKS, VOCABULARY, NEW_TOKENS = 16, 64, 128, 24
LENGTHS = (3, 16, 31, 17, 1)
NAN = float("nan")

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def _config(kind, heads, kv_heads, **more):
    sizes = SIZES | {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return getattr(transformers, f"{kind}Config")(**sizes, **more)


MODELS = {
    "llama-gqa": _config("Llama", 8, 2),
    "llama-mha": _config("Llama", 4, 4),
    "llama-mqa": _config("Llama", 4, 1),
    "mistral-window": _config("Mistral", 4, 2, sliding_window=7),
    # One layer with a window and one without, both with softcaps, and a scale of its own.
    "gemma2": _config(
        "Gemma2",
        4,
        2,
        sliding_window=9,
        query_pre_attn_scalar=32,
        attn_logit_softcapping=5.0,
        tie_word_embeddings=False,  # or it repeats its last token
    ),
}


def make_model(name, dtype=torch.float32):
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="eager")
    return model.to(dtype).eval()


def make_prompts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


class Engine:
    """What the engine does around attention: blocks, tables, masks, padding, and the caches."""

    def __init__(self, model, *, as_kernel=False, packed=False):
        self.model, self.as_kernel, self.packed = model, as_kernel, packed
        self.backend = PagedAttentionBackend(get_provider("cpu"))
        self.free = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(5)).tolist()
        self.caches, self.masks = {}, []

    def generate(self, prompts, new_tokens):
        """Greedy tokens of all prompts, as one batch."""
        self.context = [len(prompt) for prompt in prompts]
        self.tables = [[] for _ in prompts]
        AttentionInterface.register("engine", self.attend)
        self.model.set_attn_implementation("engine")
        with torch.inference_mode():
            tokens = [self.prefill(prompts)]
            while len(tokens) < new_tokens:
                tokens.append(self.decode(tokens[-1]))
        return torch.stack(tokens, 1).tolist()

    def prefill(self, prompts):
        lengths, width = self.context, max(self.context)
        self.reserve(lengths)
        place = torch.arange(width)
        self.valid = place < torch.tensor(lengths)[:, None]
        self.mask = (place <= place[:, None]) & self.valid[:, None, None]
        if len(set(lengths)) == 1:
            self.mask = None
        self.metadata = self.builder().build_prefill_metadata(
            seq_lens=lengths, block_tables=self.table(), num_kv_heads=None, head_dim=None
        )
        ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
        logits = self.run(ids, place.expand_as(ids))
        return logits[torch.arange(len(prompts)), torch.tensor(lengths) - 1].argmax(-1)

    def decode(self, tokens):
        self.reserve([length + 1 for length in self.context])
        self.metadata = self.builder().build_decode_metadata(
            context_lens=self.context, block_tables=self.table(), num_kv_heads=None, head_dim=None
        )
        # In the layout of padded rows, and wrong for shorter sequences: nobody may look at it.
        self.mask = torch.zeros(len(tokens), 1, 1, max(self.context) + 1, dtype=torch.bool)
        logits = self.run(tokens[:, None], torch.tensor(self.context)[:, None])
        self.context = [length + 1 for length in self.context]
        return logits[:, -1].argmax(-1)

    def run(self, ids, positions):
        return self.model(input_ids=ids, position_ids=positions, use_cache=False).logits

    def reserve(self, lengths):
        for table, length in zip(self.tables, lengths, strict=True):
            while len(table) * BLOCK < length:
                table.append(self.free.pop())

    def table(self):
        """Blocks by sequence, padded on the right with zeros, block 0 being somebody's."""
        width = max(map(len, self.tables))
        return torch.tensor([row + [0] * (width - len(row)) for row in self.tables])

    def builder(self):
        return PagedAttentionMetadataBuilder(block_size=BLOCK, device=torch.device("cpu"))

    def cache(self, layer, kv_heads, head_dim, dtype):
        shape = self.backend.get_kv_cache_shape(
            num_blocks=BLOCKS, block_size=BLOCK, num_kv_heads=kv_heads, head_dim=head_dim
        )
        if layer not in self.caches:
            self.caches[layer] = tuple(torch.full(shape, NAN, dtype=dtype) for _ in range(2))
        return self.caches[layer]

    def attend(self, module, query, key, value, attention_mask, scaling, **options):
        batch, _, width, head_dim = query.shape
        rows = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        cache = self.cache(module.layer_idx, key.shape[1], head_dim, query.dtype)
        limits = {"window": options.get("sliding_window"), "softcap": options.get("softcap")}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        if not self.metadata.is_prefill:
            out = self.call(*rows, cache, scaling, limits)
        elif self.packed:
            real = self.valid.flatten()
            out = torch.zeros_like(rows[0])
            out[real] = self.call(*(x[real] for x in rows), cache, scaling, limits)
        else:
            rows = [x.masked_fill(~self.valid.flatten()[:, None, None], NAN) for x in rows]
            out = self.call(*rows, cache, scaling, limits)
            assert out.isfinite().all()
        return out.view(batch, width, -1, head_dim), None

    def call(self, query, key, value, cache, scale, limits):
        if self.as_kernel and not limits:
            return self.backend.attention(
                query,
                key,
                value,
                attention_metadata=self.metadata,
                kv_cache=cache,
                scale=scale,
                attn_mask=self.mask,
            )
        return self.backend.forward(
            query=query,
            key=key,
            value=value,
            attn_metadata=self.metadata,
            kv_cache=cache,
            scale=scale,
            attn_mask=self.mask,
            **limits,
        )


def logits_alone(model, prompt, tokens):
    """What transformers gives for each of ``tokens`` after the ones before it."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].double()


def greedy_alone(model, prompt, new_tokens):
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_unequal_prompts_give_the_tokens_of_each_alone(name, packed):
    model, prompts = make_model(name), make_prompts()
    expected = [greedy_alone(model, prompt, NEW_TOKENS) for prompt in prompts]
    engine = Engine(model, packed=packed)
    assert engine.generate(prompts, NEW_TOKENS) == expected
    assert max(map(len, engine.tables)) == 4, "no block boundary was crossed"
    assert len({tuple(tokens) for tokens in expected}) == len(prompts), "the prompts do not matter"
    assert min(len(set(tokens)) for tokens in expected) > 3, "the context does not matter"


def test_a_kernel_of_the_engine_gives_the_same_tokens():
    model, prompts = make_model("llama-gqa"), make_prompts()
    expected = Engine(model).generate(prompts, NEW_TOKENS)
    assert Engine(model, as_kernel=True).generate(prompts, NEW_TOKENS) == expected


def test_prompts_of_one_length_come_without_a_mask():
    model, prompts = make_model("llama-gqa"), make_prompts((16, 16, 16))
    expected = [greedy_alone(model, prompt, NEW_TOKENS) for prompt in prompts]
    assert Engine(model).generate(prompts, NEW_TOKENS) == expected


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_types_choose_what_transformers_cannot_tell_apart(name, dtype):
    model, prompts = make_model(name, dtype), make_prompts()
    tokens = Engine(model).generate(prompts, NEW_TOKENS)
    same = 0
    for prompt, chosen in zip(prompts, tokens, strict=True):
        logits = logits_alone(model, prompt, chosen)
        best = logits.max(-1).values
        picked = logits.gather(1, torch.tensor(chosen)[:, None])[:, 0]
        # Both best logits have errors of a few units in the last place of the largest one.
        told_apart = 8 * torch.finfo(dtype).eps * logits.abs().max(-1).values
        assert (best - picked <= told_apart).all(), (best - picked) / told_apart
        same += int((best == picked).sum())
    assert same >= 0.95 * len(prompts) * NEW_TOKENS
