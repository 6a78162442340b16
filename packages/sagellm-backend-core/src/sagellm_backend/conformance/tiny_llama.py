"""A Llama-shaped decoder of two layers, made on the spot, and what it has to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sagellm_backend.conformance.llama import Array, Shape, Weights, reference_logits
from sagellm_backend.dtypes import DType

TINY = Shape(layers=2, heads=4, kv_heads=2, head_dim=16, positions=1024)
HIDDEN, INNER, VOCABULARY = TINY.heads * TINY.head_dim, 96, 48


def make_weights(
    rng: np.random.Generator, dtype: DType, *, vocabulary: int = VOCABULARY
) -> Weights:
    """Random weights in ``dtype``, of a size at which every part of the decoder moves the logits."""
    query, keys = TINY.heads * TINY.head_dim, TINY.kv_heads * TINY.head_dim
    shapes = {"embed": (vocabulary, HIDDEN), "head": (vocabulary, HIDDEN), "norm": (HIDDEN,)}
    for layer in range(TINY.layers):
        shapes |= {
            f"{layer}.q": (query, HIDDEN),
            f"{layer}.k": (keys, HIDDEN),
            f"{layer}.v": (keys, HIDDEN),
            f"{layer}.o": (HIDDEN, query),
            f"{layer}.gate_up": (2 * INNER, HIDDEN),
            f"{layer}.down": (HIDDEN, INNER),
            f"{layer}.norm": (HIDDEN,),
            f"{layer}.mlp_norm": (HIDDEN,),
        }
    made = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if name.endswith("norm"):
            values = 1 + 0.2 * values
        elif name != "embed":
            values *= (2.0 if name[2:] in {"q", "o"} else 1.0) * shape[-1] ** -0.5
        made[name] = values.astype(dtype.numpy)
    return made


@dataclass
class Story:
    """A prompt, the tokens that the float64 decoder puts behind it, and the logits it chose them by."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)

    def margin(self) -> float:
        """The smallest lead of a chosen token over the next best, in deviations of its logits."""
        rows = np.sort(np.array(self.logits), axis=-1)
        lead: Array = (rows[:, -1] - rows[:, -2]) / rows.std(axis=-1)
        return float(lead.min())


def find_weights(
    rng: np.random.Generator, dtype: DType, length: int, steps: int, margin: float
) -> tuple[Weights, Story]:
    """Weights for which a prompt of ``length`` has a story, and that story; see :func:`find_story`.

    There are few prompts of one token: with some weights none of them leads far enough.
    """
    for _ in range(100):
        weights = make_weights(rng, dtype)
        story = _draw(rng, weights, length, steps, margin)
        if story:
            return weights, story
    raise RuntimeError(f"No weights give a prompt of {length} tokens a lead of {margin}.")


def find_story(
    rng: np.random.Generator,
    weights: Weights,
    length: int,
    steps: int,
    margin: float,
    prefix: Sequence[int] = (),
) -> Story:
    """A story of a prompt of ``length``, which begins with ``prefix``, and of ``steps`` tokens.

    No choice in it is closer than ``margin``, so that rounding cannot turn a token: random prompts
    are drawn until one leads so far throughout. Raises :class:`RuntimeError` when none is found.
    """
    story = _draw(rng, weights, length, steps, margin, prefix)
    if story is None:
        raise RuntimeError(f"No prompt of {length} tokens leads by {margin} in {steps} choices.")
    return story


def _draw(
    rng: np.random.Generator,
    weights: Weights,
    length: int,
    steps: int,
    margin: float,
    prefix: Sequence[int] = (),
) -> Story | None:
    for _ in range(100 if length == 1 else 1000):
        drawn = rng.integers(0, VOCABULARY, (8, length))
        drawn[:, : len(prefix)] = prefix
        tried = [Story(prompt) for prompt in drawn.tolist()]
        for _ in range(steps):
            told = [item.prompt + item.tokens for item in tried]
            rows = reference_logits(TINY, weights, told)[:, 0]
            for item, row in zip(tried, rows, strict=True):
                item.tokens.append(int(row.argmax()))
                item.logits.append(row)
            tried = [item for item in tried if item.margin() >= margin]
            if not tried:
                break
        else:
            return tried[0]
    return None
