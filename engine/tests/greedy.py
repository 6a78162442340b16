"""What transformers itself generates from a checkpoint, and whether other tokens are as good."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

# Two logits count as equal where they differ by no more than this many roundings of the larger.
ROUNDINGS = 4


class Greedy:
    """A checkpoint in one dtype, without any backend."""

    def __init__(self, path, dtype):
        self.dtype = getattr(torch, dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=self.dtype).eval()
        if self.model.config.model_type == "gpt2":
            _read_as_the_engine_does(self.model)

    def ids(self, prompt):
        return self.tokenizer(prompt, return_tensors="pt").input_ids

    @torch.inference_mode()
    def tokens(self, prompt, count):
        ids = self.ids(prompt)
        mask = torch.ones_like(ids)
        found = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        return found[0, ids.shape[1] :].tolist()

    @torch.inference_mode()
    def check(self, prompt, tokens):
        """Refuse a token that is not the best after those before it, and not as good as the best.

        Being as good counts in half types only.
        """
        logits = self._logits(self.ids(prompt), torch.tensor([tokens]))
        best = logits.max(-1).values
        gap = best - logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        exact = self.dtype is torch.float32
        allowed = 0 if exact else ROUNDINGS * torch.finfo(self.dtype).eps * best.abs()
        assert (gap <= allowed).all(), (
            f"token {int((gap - allowed).argmax())} of {len(tokens)} lies {float(gap.max()):.4g} "
            f"under the best logit, {float(best.abs().max()):.4g}"
        )

    def _logits(self, ids, tokens):
        """What stands before each of ``tokens``, from one pass over all where attention is causal."""
        if self.model.config.model_type != "gpt2":
            row = torch.cat([ids, tokens], 1)
            return self.model(row).logits[0, ids.shape[1] - 1 : -1].float()
        found = [self.model(ids, use_cache=True)]
        for token in tokens[0, :-1]:
            cache = found[-1].past_key_values
            found.append(self.model(token.view(1, 1), past_key_values=cache, use_cache=True))
        return torch.stack([step.logits[0, -1] for step in found]).float()


def _read_as_the_engine_does(gpt2):
    """Make transformers compute the engine's GPT-2, which is not GPT-2 (docs/engines.md).

    The engine takes the weights of q, k, v and o, which lie (in, out), for (out, in), and a prompt's
    tokens attend to those behind them.
    """
    with torch.no_grad():
        for block in gpt2.transformer.h:
            for layer, parts in ((block.attn.c_attn, 3), (block.attn.c_proj, 1)):
                squares = layer.weight.chunk(parts, 1)
                layer.weight.copy_(torch.cat([square.T for square in squares], 1))
    AttentionInterface.register("unmasked", _unmasked)
    gpt2.set_attn_implementation("unmasked")


def _unmasked(module, query, key, value, attention_mask, **_):
    out = functional.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2), None
