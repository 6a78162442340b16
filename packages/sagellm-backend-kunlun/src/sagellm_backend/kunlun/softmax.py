"""The softmax of fp32, from its parts.

Paddle's own, on the CPU, takes what is 64 below the highest for e**-64, and its exp() takes what is
below -88 for -88.
"""

from __future__ import annotations

from typing import Any

import paddle


def softmax_of(logits: Any) -> Any:
    """Softmax over the last axis of an fp32 tensor; ``-inf`` gives 0."""
    if 0 in logits.shape:
        return paddle.zeros_like(logits)
    below = paddle.subtract(logits, paddle.max(logits, axis=-1, keepdim=True))
    powers = paddle.square(paddle.exp(paddle.scale(below, 0.5)))
    return paddle.divide(powers, paddle.sum(powers, axis=-1, keepdim=True))
