"""Writes into a paged cache by a compiled kernel, which looks at every slot first."""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from sagellm_backend.cpu import capturing
from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.cpu.operands import on_host
from sagellm_backend.torch_support import kernels
from sagellm_backend.torch_support.misuse import FLOATING, INDEX

_KERNEL = Kernel("kv_write", "bytes")
_CHUNK, _FAILED = 1 << 16, 22
_words, _packed = (ctypes.c_int64 * 23).from_buffer_copy, struct.Struct("23q").pack
_INT64 = torch.int64


def kv_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    """See the operation's table. A slot outside of the cache is refused before anything is written."""
    try:
        written = _compiled(key, value, key_cache, value_cache, slots)
    except RuntimeError:
        written = (
            False  # a tensor without strides, or of torch.func, which has no memory of its own
        )
    if not written:
        # It looks at the slots on the host, which a graph has to do anew.
        capturing.call(kernels.kv_write, key, value, key_cache, value_cache, slots)


def _compiled(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> bool:
    """Whether the kernel has written: it takes neither every tensor nor any misuse."""
    dtype = key.dtype
    if not (value.dtype is key_cache.dtype is value_cache.dtype is dtype) or dtype not in FLOATING:
        return False
    if not on_host(key, value, key_cache, value_cache, slots):
        return False
    # What has other dimensions does not unpack, which is a ValueError as all misuse is.
    shape, cache_shape = key.shape, key_cache.shape
    tokens, heads, dim = shape
    blocks, block_size, cache_heads, cache_dim = cache_shape
    if value.shape != shape or value_cache.shape != cache_shape or slots.shape != (tokens,):
        return False
    if heads != cache_heads or dim != cache_dim or not (heads and dim and block_size):
        return False
    k_token, k_head, k_element = key.stride()
    v_token, v_head, v_element = value.stride()
    to_k_block, to_k_slot, to_k_head, to_k_element = key_cache.stride()
    to_v_block, to_v_slot, to_v_head, to_v_element = value_cache.stride()
    if not k_element == v_element == to_k_element == to_v_element == 1:
        return False
    if slots.dtype is not _INT64 or not slots.is_contiguous():
        if slots.dtype not in INDEX:
            return False
        slots = slots.long().contiguous()
    function = _KERNEL.function()
    if function is None:
        return False
    size = dtype.itemsize
    nbytes = dim * size
    chunk = _CHUNK // (heads * nbytes) or 1
    # fmt: off
    words = _words(_packed(
        0,
        key.data_ptr(), k_token * size, k_head * size,
        key_cache.data_ptr(), to_k_block * size, to_k_slot * size, to_k_head * size,
        value.data_ptr(), v_token * size, v_head * size,
        value_cache.data_ptr(), to_v_block * size, to_v_slot * size, to_v_head * size,
        slots.data_ptr(), tokens, heads, nbytes, block_size, blocks * block_size, chunk, 0,
    ))
    # fmt: on
    team.run(function, words, -(-tokens // chunk))
    return not words[_FAILED]
