"""``kv_write`` in one launch: a kernel of our own, compiled by NVRTC, which torch carries.

It is taken where ``SAGELLM_CUDA_KERNELS=compiled`` asks for it, and torch can compile kernels (2.9
and later, by a call that is not public yet). NVRTC 13.5 compiles it for compute capability 7.5 to
12.0, and as C++ it has run on the CPU; it has never run on a card.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sagellm_backend.torch_support import device_kernels
from sagellm_backend.torch_support.misuse import check_write, require_one_device

THREADS = 256
_INT_MAX = (1 << 31) - 1

SOURCE = """
template <typename Word>
__device__ void move(const char* from, char* to, int heads, int words, long long from_head,
                     long long to_head) {
  for (int at = threadIdx.x; at < heads * words; at += blockDim.x) {
    const long long head = at / words;
    const Word* read = reinterpret_cast<const Word*>(from + head * from_head);
    reinterpret_cast<Word*>(to + head * to_head)[at % words] = read[at % words];
  }
}

// A token's row into its slot. Strides are in words of `size` bytes, a row has `words` of them.
extern "C" __global__ void kv_write(
    const char* key, const char* value, char* key_cache, char* value_cache, const void* slots,
    int wide, int block_size, int heads, int words, int size,
    int key_token, int key_head, int value_token, int value_head,
    int key_cache_block, int key_cache_token, int key_cache_head,
    int value_cache_block, int value_cache_token, int value_cache_head) {
  const long long token = blockIdx.x;
  const bool second = blockIdx.y;
  const long long slot = wide ? static_cast<const long long*>(slots)[token]
                              : static_cast<const int*>(slots)[token];
  if (slot < 0) return;
  const long long block = slot / block_size, offset = slot % block_size, bytes = size;
  const char* from = second ? value + token * value_token * bytes : key + token * key_token * bytes;
  char* to = second
      ? value_cache + (block * value_cache_block + offset * value_cache_token) * bytes
      : key_cache + (block * key_cache_block + offset * key_cache_token) * bytes;
  const long long from_head = (second ? value_head : key_head) * bytes;
  const long long to_head = (second ? value_cache_head : key_cache_head) * bytes;
  if (size == 16) move<uint4>(from, to, heads, words, from_head, to_head);
  else if (size == 8) move<uint2>(from, to, heads, words, from_head, to_head);
  else if (size == 4) move<unsigned int>(from, to, heads, words, from_head, to_head);
  else move<unsigned short>(from, to, heads, words, from_head, to_head);
}
"""


class Writer:
    """Compiles the kernel for each device at its first use. Thread-safe.

    ``module`` is the device module. What the kernel does not take, torch's writes.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._kernels: dict[int, Callable[..., None]] = {}

    def shortfalls(self, index: int) -> list[str]:
        """Why there is no kernel for a device; empty where there is one, compiled by now."""
        if not hasattr(self._module, "_compile_kernel"):
            return [f"torch {torch.__version__} compiles no kernels; 2.9 does"]
        try:
            self._kernel(index)
        except (RuntimeError, OSError) as error:
            return [f"it was not compiled: {str(error).strip().splitlines()[0]}"]
        return []

    def kv_write(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
    ) -> None:
        """The operation of that name."""
        check_write(key, value, key_cache, value_cache, slots)
        require_one_device("kv_write", key, value, key_cache, value_cache, slots)
        if not (slots.numel() and key_cache.shape[0]):
            return
        numbers = _numbers(key, value, key_cache, value_cache)
        if numbers is None:
            device_kernels.kv_write(key, value, key_cache, value_cache, slots)
            return
        kernel = self._kernel(key.device.index)
        with self._module.device(key.device):
            launch(kernel, (key, value, key_cache, value_cache), slots.contiguous(), numbers)

    def _kernel(self, index: int) -> Callable[..., None]:
        with self._lock:
            found = self._kernels.get(index)
            if found is None:
                with self._module.device(index):
                    found = self._module._compile_kernel(SOURCE, "kv_write")  # noqa: SLF001
                self._kernels[index] = found
        return found


def launch(
    kernel: Callable[..., None], arrays: tuple[Tensor, ...], slots: Tensor, numbers: list[int]
) -> None:
    """Queue the kernel on the current stream: a block for each row of keys, and of values."""
    key, _, key_cache, _ = arrays
    wide = int(slots.dtype is torch.int64)
    kernel(
        grid=(key.shape[0], len(arrays) // 2, 1),
        block=(THREADS, 1, 1),
        args=[*arrays, slots, wide, key_cache.shape[1], key.shape[1], *numbers],
    )


def _numbers(*arrays: Tensor) -> list[int] | None:
    """A row's words, their size, and all strides in words; ``None`` for what the kernel cannot do."""
    if any(one.stride(-1) != 1 for one in arrays):
        return None
    row = arrays[0].shape[-1] * arrays[0].itemsize
    strides = [step * one.itemsize for one in arrays for step in one.stride()[:-1]]
    size = next((word for word in (16, 8, 4, 2) if _divides(word, row, strides, arrays)), None)
    if size is None or max(strides) // size > _INT_MAX:
        return None
    return [row // size, size, *(step // size for step in strides)]


def _divides(word: int, row: int, strides: list[int], arrays: tuple[Tensor, ...]) -> bool:
    starts = (one.data_ptr() for one in arrays)
    return not any(number % word for number in (row, *strides, *starts))
