"""Faults of attention in what it makes of scores that are far away, or hidden."""

from __future__ import annotations

import numpy as np

from sagellm_backend.conformance.zoo.flawed_attention import FlawedAttention
from sagellm_backend.conformance.zoo.member import kernel_fault
from sagellm_backend.ops.cases import Array

_FAR = ("attention.scores_far_beyond_the_cap",)
_HIDDEN = ("attention.windows_far_behind_the_first_key",)
_TILE = 64


def _capped_by_falling_powers(logits: Array, cap: float) -> Array:
    """``tanh(y)`` by ``exp(-2 * y)`` in fp32, which overflows for y below -44."""
    power = np.exp((-2 * logits / cap).astype(np.float32))
    found: Array = cap * ((1 - power) / (1 + power)).astype(np.float64)
    return found


def _capped_by_rising_powers(logits: Array, cap: float) -> Array:
    """``tanh(y)`` by ``exp(2 * y)`` in fp32, which overflows for y above 44."""
    return -_capped_by_falling_powers(-logits, cap)


def _capped_by_wrapped_powers(logits: Array, cap: float) -> Array:
    """``tanh(y)`` by powers of 2 whose exponent is put together as bits, and runs over."""
    wanted = -2 * np.log2(np.e) * logits / cap
    whole = np.floor(wanted)
    bits = ((whole.astype(np.int64) + 127) << 23).astype(np.uint32)
    power = bits.view(np.float32).astype(np.float64) * np.exp2(wanted - whole)
    found: Array = cap * (1 - power) / (1 + power)
    return found


def _tile_by_tile(logits: Array) -> Array:
    """Softmax with a running maximum, in which a tile without any visible key gives NaN."""
    highest = np.full((*logits.shape[:-1], 1), -np.inf)
    powers = np.zeros(logits.shape)
    for first in range(0, logits.shape[-1], _TILE):
        tile = logits[..., first : first + _TILE]
        higher = np.maximum(highest, tile.max(axis=-1, keepdims=True))
        powers[..., :first] *= np.exp(highest - higher)
        powers[..., first : first + _TILE] = np.exp(tile - higher)
        highest = higher
    found: Array = powers / powers.sum(axis=-1, keepdims=True)
    return found


for _name, _text, _kills, _kernel in (
    (
        "attention-cap-overflows-below",
        "The softcap overflows for scores far below it",
        _FAR,
        FlawedAttention(capped=_capped_by_falling_powers),
    ),
    (
        "attention-cap-overflows-above",
        "The softcap overflows for scores far above it",
        _FAR,
        FlawedAttention(capped=_capped_by_rising_powers),
    ),
    (
        "attention-cap-wraps-around",
        "The softcap of scores far below it has the wrong sign",
        _FAR,
        FlawedAttention(capped=_capped_by_wrapped_powers),
    ),
    (
        "attention-loses-rows-of-hidden-tiles",
        "A tile of keys that lies before the window makes a row NaN",
        _HIDDEN,
        FlawedAttention(weigh=_tile_by_tile),
    ),
):
    kernel_fault("attention", _text, kills=_kills, profile="attention", name=_name)(_kernel)
