"""Sampling in plain Paddle, in fp32: XPUs have no kernels of float64 for it."""

from __future__ import annotations

from typing import Any

import paddle

from sagellm_backend.kunlun.misuse import INDEX, MisuseError, check_logits
from sagellm_backend.kunlun.softmax import softmax_of


def greedy_sample(logits: Any) -> Any:
    check_logits(logits)
    if not logits.shape[0]:
        return paddle.empty([0], "int64", device=logits.place)
    return paddle.argmax(paddle.cast(logits, "float32"), axis=-1)


def sample(logits: Any, uniform: Any, temperature: Any, top_k: Any, top_p: Any) -> Any:
    check_logits(logits)
    rows, size = logits.shape
    fractions = (uniform, temperature, top_p)
    if any(one.ndim != 1 or one.shape[0] != rows for one in (*fractions, top_k)):
        raise MisuseError
    if top_k.dtype not in INDEX or any(one.dtype != paddle.float32 for one in fractions):
        raise MisuseError
    if not rows:
        return paddle.empty([0], "int64", device=logits.place)
    zero = paddle.zeros_like(temperature)
    greedy = paddle.equal(temperature, zero)
    divisor = paddle.where(greedy, paddle.ones_like(temperature), temperature)
    scaled = paddle.divide(paddle.cast(logits, "float32"), paddle.unsqueeze(divisor, 1))
    ids = paddle.argsort(scaled, axis=-1, descending=True, stable=True)
    ordered = paddle.take_along_axis(scaled, ids, axis=-1)
    rank = paddle.arange(size, dtype="int64", device=logits.place)
    wide_k = paddle.cast(top_k, "int64")
    every = paddle.full_like(wide_k, size)
    limit = paddle.unsqueeze(
        paddle.where(paddle.greater_than(wide_k, paddle.zeros_like(wide_k)), wide_k, every), 1
    )
    allowed = paddle.less_than(paddle.unsqueeze(rank, 0), limit)
    lowest = paddle.full_like(ordered, -float("inf"))
    probability = softmax_of(paddle.where(allowed, ordered, lowest))
    before = paddle.subtract(paddle.cumsum(probability, axis=-1), probability)
    # A token stays if those before it have not yet reached top_p; the first one always does.
    within = paddle.less_than(before, paddle.unsqueeze(top_p, 1))
    first = paddle.unsqueeze(paddle.equal(rank, paddle.zeros_like(rank)), 0)
    kept = paddle.cast(paddle.logical_or(paddle.logical_and(within, allowed), first), "float32")
    cumulative = paddle.cumsum(paddle.multiply(probability, kept), axis=-1)
    target = paddle.multiply(paddle.unsqueeze(uniform, 1), cumulative[:, -1:])
    passed = paddle.sum(paddle.cast(paddle.less_equal(cumulative, target), "int64"), axis=-1)
    last = paddle.subtract(
        paddle.cast(paddle.sum(kept, axis=-1), "int64"), paddle.ones_like(passed)
    )
    drawn = paddle.minimum(passed, last)
    drawn = paddle.where(greedy, paddle.zeros_like(drawn), drawn)
    return paddle.squeeze(paddle.take_along_axis(ids, paddle.unsqueeze(drawn, 1), axis=-1), axis=1)
