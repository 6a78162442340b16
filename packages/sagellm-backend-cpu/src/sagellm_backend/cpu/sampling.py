"""Greedy sampling by a compiled kernel that reads each row once."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import addressable, kernels_of
from sagellm_backend.torch_support import sampling

_KERNELS = kernels_of("greedy_sample")
_Words = ctypes.c_int64 * 5


def greedy_sample(logits: Tensor) -> Tensor:
    """See the operation's table: among equals the lowest id."""
    kernel = _KERNELS.get(logits.dtype)
    function = None if kernel is None else kernel.function()
    if function is None or logits.dim() != 2 or not logits.numel():
        return sampling.greedy_sample(logits)
    if not addressable(logits) or not logits.is_contiguous():
        return sampling.greedy_sample(logits)
    rows, width = logits.shape
    ids = logits.new_empty(rows, dtype=torch.int64)
    try:
        words = _Words(0, logits.data_ptr(), ids.data_ptr(), rows, width)
    except RuntimeError:
        return sampling.greedy_sample(logits)  # a tensor of torch.func has no memory of its own
    team.run(function, words, rows)
    return ids
