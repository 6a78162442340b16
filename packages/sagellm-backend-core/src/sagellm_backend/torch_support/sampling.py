"""Sampling in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sagellm_backend.torch_support.misuse import FLOATING, INDEX, MisuseError


def greedy_sample(logits: Tensor) -> Tensor:
    _check_logits(logits)
    return logits.argmax(-1)


def sample(
    logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> Tensor:
    _check_logits(logits)
    rows, fractions = logits.shape[:1], (uniform, temperature, top_p)
    if any(argument.shape != rows for argument in (*fractions, top_k)):
        raise MisuseError
    if top_k.dtype not in INDEX or any(one.dtype is not torch.float32 for one in fractions):
        raise MisuseError
    greedy = temperature == 0
    scaled = logits.double() / torch.where(greedy, 1.0, temperature.double()).unsqueeze(1)
    ordered, ids = scaled.sort(stable=True, dim=-1, descending=True)
    rank = torch.arange(ordered.shape[1], device=logits.device)
    limit = torch.where(top_k > 0, top_k, ordered.shape[1]).unsqueeze(1)
    probability = ordered.masked_fill(rank >= limit, -torch.inf).softmax(-1)
    before = probability.cumsum(-1) - probability
    # A token stays if those before it have not yet reached top_p; the first one always does.
    kept = (before < top_p.double().unsqueeze(1)) & (rank < limit) | (rank == 0)
    cumulative = (probability * kept).cumsum(-1)
    target = uniform.double().unsqueeze(1) * cumulative[:, -1:]
    drawn = (cumulative <= target).sum(-1).minimum(kept.sum(-1) - 1)
    drawn = torch.where(greedy, 0, drawn)
    return ids.gather(1, drawn.unsqueeze(1)).squeeze(1)


def _check_logits(logits: Tensor) -> None:
    if logits.dim() != 2 or not logits.shape[1] or logits.dtype not in FLOATING:
        raise MisuseError
