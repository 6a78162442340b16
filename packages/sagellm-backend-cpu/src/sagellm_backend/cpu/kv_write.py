"""Writes into a paged cache by a compiled kernel, which looks at every slot first."""

from __future__ import annotations

import ctypes

from torch import Tensor

from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.cpu.operands import addressable
from sagellm_backend.torch_support import kernels
from sagellm_backend.torch_support.misuse import check_write

_KERNEL = Kernel("kv_write", "bytes")
_CHUNK, _FAILED = 1 << 16, 22
_Words = ctypes.c_int64 * 23


def kv_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    """See the operation's table. A slot outside of the cache is refused before anything is written."""
    check_write(key, value, key_cache, value_cache, slots)
    if not _compiled(key, value, key_cache, value_cache, slots):
        kernels.kv_write(key, value, key_cache, value_cache, slots)


def _compiled(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> bool:
    """Whether the kernel has written: it takes neither every tensor nor a wrong slot."""
    function = _KERNEL.function()
    if function is None or not addressable(key, value, key_cache, value_cache, slots):
        return False
    if not key.stride(2) == value.stride(2) == key_cache.stride(3) == value_cache.stride(3) == 1:
        return False
    places = slots.long().contiguous()
    (tokens, heads, dim), itemsize = key.shape, key.element_size()
    blocks, block_size = key_cache.shape[:2]
    nbytes = dim * itemsize
    size = max(1, _CHUNK // (heads * nbytes))
    try:
        words = _Words(
            0,
            *_places(key, 2, itemsize),
            *_places(key_cache, 3, itemsize),
            *_places(value, 2, itemsize),
            *_places(value_cache, 3, itemsize),
            *(places.data_ptr(), tokens, heads, nbytes),
            *(block_size, blocks * block_size, size, 0),
        )
    except RuntimeError:
        return False  # a tensor of torch.func, which has no memory of its own
    team.run(function, words, -(-tokens // size))
    return not words[_FAILED]


def _places(tensor: Tensor, dims: int, itemsize: int) -> tuple[int, ...]:
    """The address, and the strides of the first dimensions in bytes."""
    return tensor.data_ptr(), *(stride * itemsize for stride in tensor.stride()[:dims])
