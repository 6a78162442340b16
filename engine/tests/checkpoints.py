"""Small seeded checkpoints of the architectures that the engine serves rightly."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 512
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gpt2")

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_GPT2_SIZES = {"n_embd": 64, "n_layer": 3, "n_head": 4}


def make(folder, architecture, *, outlier=None, sizes=None):
    """Write a checkpoint with random weights, the same each time, and return ``folder``.

    ``outlier`` is the value of one column of the embedding, ``sizes`` replaces fields of the config.
    """
    chosen = _GPT2_SIZES if architecture == "gpt2" else _SIZES
    config = AutoConfig.for_model(
        architecture,
        **{**chosen, "vocab_size": VOCAB, **(sizes or {})},
        max_position_embeddings=1024,
        initializer_range=0.2,  # logits far enough apart to tell one token from the next
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(len(architecture))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:  # ones say nothing of how a weight is applied
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        if outlier is not None:
            model.get_input_embeddings().weight[:, 3] = outlier
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer():
    """One token for each byte: the kind that every one of these architectures can load."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: number for number, letter in enumerate(letters)}
    words |= {f"w{number}": number for number in range(len(letters), VOCAB)}
    # The special tokens lie beyond what a model can say: the engine leaves them out of deltas.
    words |= {"<unk>": VOCAB, "<pad>": VOCAB + 1}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
