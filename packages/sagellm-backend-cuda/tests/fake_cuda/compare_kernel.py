"""The source of a kernel on standard input against torch's kv_write: ends with 7 where they differ."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from fake_cuda.host_kernel import build

from sagellm_backend.cuda import compiled
from sagellm_backend.torch_support import device_kernels


def caches_of(order, packing, dtype, dim, size=4):
    """Keys and values of one layer, with a pool's strides, and the memory of both."""
    shape = (3, size, 2, dim) if order == "NHD" else (3, 2, size, dim)
    if packing == "separate":
        memory = torch.empty(2, *shape, dtype=dtype)
        pair = memory[0], memory[1]
    else:
        memory = torch.empty(shape[0], 2, *shape[1:], dtype=dtype)
        pair = memory[:, 0], memory[:, 1]
    if order == "HND":
        pair = tuple(one.transpose(1, 2) for one in pair)
    bits = memory.view(torch.uint8)
    bits.copy_(torch.arange(bits.numel()).reshape(bits.shape) % 251)
    return *pair, memory


def same(kernel, order, dim):
    """Whether a write leaves what torch's leaves."""
    key, value = torch.randn(2, 3, 2, dim).half()
    keys, values, memory = caches_of(order, "packed", torch.float16, dim)
    *pair, wanted = caches_of(order, "packed", torch.float16, dim)
    slots = torch.tensor([5, -1, 2], dtype=torch.int32)
    device_kernels.kv_write(key, value, *pair, slots)
    numbers = compiled._numbers(key, value, keys, values)
    compiled.launch(kernel, (key, value, keys, values), slots, numbers)
    return torch.equal(memory.view(torch.uint8), wanted.view(torch.uint8))


if __name__ == "__main__":
    made = build(sys.stdin.read(), Path(sys.argv[1]))
    found = [same(made, order, dim) for order in ("NHD", "HND") for dim in (4, 8)]
    sys.exit(0 if all(found) else 7)
