"""Greedy sampling by a compiled kernel that reads each row once."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.operands import kernels_of, on_host
from sagellm_backend.torch_support import sampling

_KERNELS = kernels_of("greedy_sample")
_words, _packed = (ctypes.c_int64 * 5).from_buffer_copy, struct.Struct("5q").pack
_INT64 = torch.int64


def greedy_sample(logits: Tensor) -> Tensor:
    """See the operation's table: among equals the lowest id."""
    try:
        ids = _compiled(logits)
    except RuntimeError:
        ids = None  # a tensor without strides, or of torch.func, which has no memory of its own
    return sampling.greedy_sample(logits) if ids is None else ids


def _compiled(logits: Tensor) -> Tensor | None:
    """The ids; ``None`` for what the kernel does not take, and for misuse."""
    kernel = _KERNELS.get(logits.dtype)
    if kernel is None or not on_host(logits) or not logits.is_contiguous():
        return None
    rows, width = logits.shape  # other dimensions do not unpack, a ValueError as misuse is
    function = kernel.function()
    if function is None or not rows or not width:
        return None
    ids = logits.new_empty(rows, dtype=_INT64)
    team.run(function, _words(_packed(0, logits.data_ptr(), ids.data_ptr(), rows, width)), rows)
    return ids
