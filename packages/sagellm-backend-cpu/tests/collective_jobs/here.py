"""What every job needs: the place of this process, values, and comparisons."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sagellm_backend.torch_support.collectives import join

CPU = torch.device("cpu")
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOVED = (*INTEGERS, *FLOATS, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool)
SHAPES = ((), (7,), (2, 3))
BINARY = {
    "sum": torch.add,
    "prod": torch.mul,
    "max": torch.maximum,
    "min": torch.minimum,
    "band": torch.bitwise_and,
    "bor": torch.bitwise_or,
    "bxor": torch.bitwise_xor,
}


@dataclass
class Here:
    rank: int
    world: int
    init_method: str
    folder: Path

    @property
    def other(self) -> int:
        return 1 - self.rank

    def join(self, timeout_s=20.0, init_method=None, rank=None):
        rank = self.rank if rank is None else rank
        method = init_method or self.init_method
        return join("cpu", "gloo", CPU, rank, self.world, method, timeout_s)

    def meet(self, name):
        """Wait for the other ranks without the code under test."""
        (self.folder / f"{name}.{self.rank}").touch()
        deadline = time.monotonic() + 20
        while not all((self.folder / f"{name}.{rank}").exists() for rank in range(self.world)):
            assert time.monotonic() < deadline, f"nobody came to {name}"
            time.sleep(0.005)


def bits(array):
    return array.reshape(-1).view(torch.uint8).tolist()


def same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert bits(actual) == bits(expected), (actual, expected)


def values(rank, shape, dtype, salt=0):
    generator = torch.Generator().manual_seed(100 * salt + rank)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    if dtype in INTEGERS:
        return torch.randint(-128, 128, shape, generator=generator).to(dtype)
    return (torch.randn(shape, generator=generator) * 4).to(dtype)


@contextmanager
def refused(kind, *words):
    with pytest.raises(kind) as caught:
        yield
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"


def resources():
    gc.collect()
    return tuple(len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))


def grown(before):
    return any(now > then for now, then in zip(resources(), before, strict=True))
