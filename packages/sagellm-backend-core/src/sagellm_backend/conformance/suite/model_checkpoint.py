"""A trained model: its logits and tokens are those of the float64 decoder, over all of its layers.

A model of many layers shows what one made on the spot cannot: what small errors add up to, sizes
that are no powers of two, and activations with the outliers that training makes.

How far logits may be off follows from the roundings. Each layer rounds the residual stream or what
is added to it about eight times, by ``u`` of the dtype, and sums up to ``inner`` terms in fp32,
which is off by ``sqrt(inner) * 2**-24`` where errors are independent; the errors of all layers add
up as those of a random walk, and normalisation keeps them in proportion to the logits. Thus their
root mean square, in deviations of the logits, is about ``sqrt(8 * layers) * u``. Three times that
is accepted (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019), and
six times that for any single logit.
"""

from __future__ import annotations

import math

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.checkpoint import Checkpoint
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.llama import (
    Array,
    BackendDecoder,
    Running,
    Shape,
    Weights,
    model_dtypes,
    reference_logits,
)
from sagellm_backend.conformance.pages import block_size_for, layout_for
from sagellm_backend.dtypes import DType
from sagellm_backend.kv import KVPool

STEPS = 6
PROMPTS = (
    # <|im_start|>user\nThe capital of France is<|im_end|>\n<|im_start|>assistant\n
    (1, 4093, 198, 504, 3575, 282, 4649, 314, 2, 198, 1, 520, 9531, 198),
    # The capital of France is
    (504, 3575, 282, 4649, 314),
)
"""Two texts in the ids of SmolLM2's tokenizer."""

_FACTOR, _SINGLE = 3.0, 6.0


def _dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The most exact dtype of the decoder's, which decides the most choices, and the coarsest.

    The reference computes in float64 whatever the dtype: the coarsest would only take longer there.
    """
    ordered = sorted(model_dtypes(capability), key=lambda dtype: dtype.unit_roundoff)
    coarsest = ordered[-1:] if capability.device_type != "reference" else []
    return tuple(dict.fromkeys((*ordered[:1], *coarsest)))


@case(
    "model",
    requires=(Feature.KV_POOL,),
    params={"dtype": _dtypes},
    depth="standard",
    checkpoint=True,
)
def a_checkpoint_speaks_as_the_reference(exam: Exam) -> None:
    """A trained model of a checkpoint gets the logits and the tokens of the float64 decoder.

    Two prompts of unequal length run as one batch. A token counts where the float64 decoder's
    choice leads by three times the error accepted. Kills: errors that add up over layers, and
    kernels that are wrong at a real model's sizes.
    """
    assert exam.checkpoint is not None
    model = Checkpoint(exam.checkpoint)
    weights = model.weights(exam["dtype"])
    batch, logits = _decode(exam, model.shape, weights)
    wanted = reference_logits(
        model.shape, _exact(weights), [item.tokens[:-1] for item in batch], STEPS
    )
    accepted = _accepted(model.shape, weights, exam["dtype"])
    _compare(exam, logits, wanted, accepted)
    tokens = np.array([item.tokens[-STEPS:] for item in batch])
    _compare_tokens(exam, tokens, wanted, accepted)


def _decode(exam: Exam, shape: Shape, weights: Weights) -> tuple[list[Running], Array]:
    """The prompts with what the backend put behind them, and its logits: (prompts, steps, ids)."""
    decoder = BackendDecoder(exam.provider, shape, weights, exam["dtype"])
    pool = _pool(exam, shape)
    batch = [Running(list(prompt)) for prompt in PROMPTS]
    rows = []
    for _ in range(STEPS):
        for item in batch:
            item.grow(pool)
        logits, best = decoder.step(batch, pool)
        rows.append(logits)
        for item, row, token in zip(batch, logits, best, strict=True):
            exam.check(
                row[token] == row.max(), f"Token {token} was taken, the best is {row.argmax()}."
            )
            item.tokens.append(int(token))
    return batch, np.stack(rows, axis=1)


def _pool(exam: Exam, shape: Shape) -> KVPool:
    layout = layout_for(
        exam.capability,
        exam["dtype"],
        block_size=block_size_for(exam.capability),
        layers=shape.layers,
        heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    blocks = sum(layout.blocks_for(len(prompt) + STEPS) for prompt in PROMPTS)
    return exam.provider.kv_pool(layout, blocks)


def _exact(weights: Weights) -> Weights:
    """The same numbers in fp32, which NumPy widens much faster than it does narrower ones."""
    distinct = {id(array): array for array in weights.values()}
    wide = {key: array.astype(np.float32, copy=False) for key, array in distinct.items()}
    return {name: wide[id(array)] for name, array in weights.items()}


def _accepted(shape: Shape, weights: Weights, dtype: DType) -> float:
    """The root mean square error of a row of logits that is accepted, in its deviations."""
    inner = weights["0.down"].shape[-1]
    step = dtype.unit_roundoff + math.sqrt(inner) * DType.FP32.unit_roundoff
    return _FACTOR * math.sqrt(8 * shape.layers) * step


def _compare(exam: Exam, logits: Array, wanted: Array, accepted: float) -> None:
    errors = (logits - wanted) / wanted.std(axis=-1, keepdims=True)
    mean = float(np.sqrt(np.square(errors).mean(axis=-1)).max())
    single = float(np.abs(errors).max())
    for name, value in (("logit_rms", mean), ("logit_error", single)):
        exam.check(np.isfinite(value), "A logit is no finite number.")
        exam.measure(name, value)
    exam.measure("logit_rms_accepted", accepted)
    exam.check(
        mean <= accepted and single <= _SINGLE * accepted,
        f"Logits are off by {mean:.3g} deviations on average and {single:.3g} at most; accepted "
        f"are {accepted:.3g} and {_SINGLE * accepted:.3g}.",
    )


def _compare_tokens(exam: Exam, tokens: Array, wanted: Array, accepted: float) -> None:
    ordered = np.sort(wanted, axis=-1)
    lead = (ordered[..., -1] - ordered[..., -2]) / wanted.std(axis=-1)
    decided, best = lead > _FACTOR * accepted, wanted.argmax(axis=-1)
    exam.measure("tokens", tokens.size)
    exam.measure("tokens_decided", int(decided.sum()))
    exam.check(decided.any(), "No choice of the float64 decoder is decided.")
    for place in np.argwhere(decided & (tokens != best))[:1]:
        at = tuple(place.tolist())
        exam.check(
            condition=False,
            message=f"Token {at[1]} behind prompt {at[0]} is {tokens[at]}, the float64 decoder's "
            f"is {best[at]}.",
        )
