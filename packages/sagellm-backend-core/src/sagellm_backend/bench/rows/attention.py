"""Attention over a paged cache: decode steps and prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sagellm_backend.bench.row import (
    GB_PER_S,
    GFLOP_PER_S,
    Absent,
    Bound,
    Match,
    Row,
    Side,
    Target,
    Unit,
    add,
)
from sagellm_backend.bench.session import Array, Session
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError

BLOCK = 16
VLLM, GATHER = "vLLM", "gather + SDPA"
_TOLERANCE = {DType.FP32: 1e-4, DType.FP16: 1e-2, DType.BF16: 5e-2}


@dataclass(frozen=True)
class Shape:
    """``batch`` sequences that have ``context`` tokens, of which ``query`` are new."""

    batch: int
    context: int
    query: int = 1
    heads: int = 8
    kv_heads: int = 4
    width: int = 64

    @property
    def words(self) -> str:
        """The shape in a few words."""
        new = "" if self.query == 1 else f", {self.query} of them new"
        return (
            f"{self.batch} sequences of {self.context:,} tokens{new}; {self.heads} heads, "
            f"{self.kv_heads} of keys, of {self.width}"
        )

    def kv_bytes(self, dtype: DType) -> int:
        """Bytes of the keys and values of all sequences."""
        return 2 * dtype.nbytes(self.batch * self.context * self.kv_heads * self.width)

    def operations(self) -> float:
        """Multiplications and additions under the causal mask, of scores and of values."""
        seen = self.query * self.context - self.query * (self.query - 1) / 2
        return 4.0 * self.batch * self.heads * self.width * seen


class Inputs:
    """Queries, caches and tables of a shape on the host, with blocks in a random order."""

    def __init__(self, session: Session, shape: Shape, dtype: DType) -> None:
        each = -(-shape.context // BLOCK)
        cache = (shape.batch * each, BLOCK, shape.kv_heads, shape.width)
        self.shape, self.dtype = shape, dtype
        self.q = session.normal(shape.batch * shape.query, shape.heads, shape.width, dtype=dtype)
        self.k, self.v = (session.normal(*cache, dtype=dtype) for _ in range(2))
        order = session.rng.permutation(shape.batch * each)
        self.table = order.reshape(shape.batch, each).astype(np.int32)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the arrays for another process, in fp32, which holds every value of a half type."""
        arrays: Mapping[str, Array] = {"q": self.q, "k": self.k, "v": self.v}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array.astype(np.float32))
        np.save(folder / "table.npy", self.table)
        shape = self.shape
        return {
            "folder": str(folder),
            "dtype": self.dtype.value,
            "query": shape.query,
            "context": shape.context,
            "scale": shape.width**-0.5,
        }


def _match(session: Session, shape: Shape, dtype: DType) -> Match:
    if session.quick:
        shape = Shape(2, min(shape.context, 48), min(shape.query, 16))
    provider, scale = session.provider, shape.width**-0.5
    reasons = provider.supports("attention", dtype=dtype)
    if reasons:
        raise CapabilityError(f"attention in {dtype.value}", provider.name, "; ".join(reasons))
    inputs = Inputs(session, shape, dtype)
    q, k, v = map(provider.from_numpy, (inputs.q, inputs.k, inputs.v))
    lengths = ([shape.query] * shape.batch, [shape.context] * shape.batch)
    metadata = provider.attention_metadata(*lengths, inputs.table, BLOCK)
    kernel = provider.get_kernel(
        "attention",
        dtype=dtype,
        scale=scale,
        mode=metadata.mode,
        head_dim=shape.width,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        block_size=BLOCK,
    )
    result = provider.to_numpy(kernel(q, k, v, metadata, scale=scale))
    others: list[Side | Absent] = [
        _vllm(session, inputs, result),
        session.beside(GATHER, "gather_sdpa", q, k, v, metadata, scale),
    ]
    decode = shape.query == 1
    bound: Bound | None
    if decode:
        bound = session.limits.read(shape.kv_bytes(dtype))
    else:
        bound = session.limits.product(dtype, shape.operations())
    return Match(
        session.ours(lambda: kernel(q, k, v, metadata, scale=scale)),
        others,
        shape.kv_bytes(dtype) if decode else shape.operations(),
        bound,
        shape.words,
    )


def _vllm(session: Session, inputs: Inputs, ours: Array) -> Side | Absent:
    """The side of vLLM on the same inputs, unless its result is another."""
    with ExitStack() as stack:
        config: dict[str, Any] = {}
        if "vllm" in session.peers.pythons:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            config = inputs.save(folder)
        side = session.peer("vllm", VLLM, "vllm_attention.py", config)
        if isinstance(side, Absent):
            return side
        theirs = np.load(folder / "result.npy")
    wide = ours.astype(np.float32)
    error = float(np.abs(theirs - wide).max() / np.abs(wide).max())
    if error > _TOLERANCE[inputs.dtype]:
        return Absent(VLLM, f"its result is another: off by {error:.2g} of the largest")
    return side


def _add(
    name: str, shape: Shape, dtypes: tuple[DType, ...], unit: Unit, targets: tuple[Target, ...]
) -> None:
    kind = "a decode step" if shape.query == 1 else "a step over prompts"
    for dtype in dtypes:
        add(
            Row(
                f"{name}-{dtype.value}",
                "attention",
                f"Attention of {kind} in {dtype.value}: {shape.words}",
                unit,
                partial(_match, shape=shape, dtype=dtype),
                targets,
            )
        )


_HALVES = (DType.FP32, DType.BF16, DType.FP16)
_add(
    "decode-32x2048",
    Shape(32, 2048),
    _HALVES,
    GB_PER_S,
    (Target(VLLM, ratio=1.0), Target(GATHER, ratio=5.0)),
)
_add("decode-8x512", Shape(8, 512), _HALVES[:2], GB_PER_S, (Target(VLLM, ratio=0.8),))
_add("decode-1x2048", Shape(1, 2048), _HALVES[:2], GB_PER_S, ())
_add("decode-8x2048-wide", Shape(8, 2048, 1, 32, 8, 128), _HALVES[:2], GB_PER_S, ())
_add("prefill-512", Shape(1, 512, 512), _HALVES[:2], GFLOP_PER_S, ())
_add("prefill-256-of-2048", Shape(4, 2048, 256), _HALVES[:2], GFLOP_PER_S, ())
