"""KV pools as host arrays: what cases write into them, and what they must find there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType
from sagellm_backend.kv import KVLayout, KVPool

KEYS, VALUES = 0, 1
Pages = npt.NDArray[Any]
"""The logical contents of a pool: (layers, keys and values, blocks, block_size, heads, head_dim)."""


def kv_dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The dtypes that pools are declared for."""
    return capability.kv.dtypes


def kv_orders(capability: CapabilityDescriptor) -> tuple[str, ...]:
    """The declared orders of a block."""
    return capability.kv.orders


def kv_packings(capability: CapabilityDescriptor) -> tuple[str, ...]:
    """The declared packings."""
    return capability.kv.packings


def block_sizes(capability: CapabilityDescriptor) -> tuple[int, ...]:
    """Up to three declared block sizes, an odd one among them where any size will do."""
    kv = capability.kv
    return kv.block_sizes[:3] or tuple(size for size in (1, 5, 16) if size <= kv.max_block_size)


def block_size_for(capability: CapabilityDescriptor) -> int:
    """The block size for a whole model: the smallest declared, or 16 where any size will do."""
    kv = capability.kv
    return min(kv.block_sizes) if kv.block_sizes else min(16, kv.max_block_size)


def locations(capability: CapabilityDescriptor) -> tuple[str, ...]:
    """Where pools can lie."""
    return ("device", "host") if Feature.KV_HOST_POOL in capability.features else ("device",)


def written_dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """The dtypes of pools that ``kv_write`` is declared for."""
    written = capability.operations.get("kv_write", ())
    return tuple(dtype for dtype in capability.kv.dtypes if dtype in written)


def layout_for(
    capability: CapabilityDescriptor,
    dtype: DType | None = None,
    *,
    order: str | None = None,
    packing: str | None = None,
    block_size: int | None = None,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 16,
) -> KVLayout:
    """A small layout within the claims; what is not given is the first that is declared."""
    kv = capability.kv
    dtype = dtype or kv.dtypes[0]
    size = block_size or (4 if not kv.block_sizes else kv.block_sizes[0])
    block_bytes = dtype.nbytes(size * heads * head_dim)
    return KVLayout(
        num_layers=layers,
        num_kv_heads=heads,
        head_dim=head_dim,
        block_size=size,
        dtype=dtype,
        order=order or kv.orders[0],  # type: ignore[arg-type]
        packing=packing or kv.packings[0],  # type: ignore[arg-type]
        alignment=min(block_bytes & -block_bytes, kv.alignment, 64),
        index_dtype=kv.index_dtype,
    )


def pages_shape(pool: KVPool) -> tuple[int, ...]:
    """The shape of :data:`Pages` of a pool."""
    layout = pool.layout
    block = (layout.block_size, layout.num_kv_heads, layout.head_dim)
    return (layout.num_layers, 2, pool.num_blocks, *block)


def read(provider: BackendProvider, pool: KVPool) -> Pages:
    """The contents of a pool, by way of the arrays that operations get."""
    layers = [
        np.stack([provider.to_numpy(cache(layer)) for cache in (pool.key_cache, pool.value_cache)])
        for layer in range(pool.layout.num_layers)
    ]
    return np.stack(layers)


def write(provider: BackendProvider, pool: KVPool, pages: Pages) -> None:
    """Overwrite a whole pool.

    By the hook that brings results of a reference back: operations are not computed in every dtype
    that a pool may have.
    """
    for layer in range(pool.layout.num_layers):
        for cache, values in zip((pool.key_cache, pool.value_cache), pages[layer], strict=True):
            provider._write_back(cache(layer), np.ascontiguousarray(values))  # noqa: SLF001


def fill(exam: Exam, pool: KVPool, provider: BackendProvider | None = None) -> Pages:
    """Write random bits into a whole pool, and return them."""
    pages = exam.fill(pages_shape(pool), pool.layout.dtype)
    write(provider or exam.provider, pool, pages)
    return pages


def expect(
    exam: Exam, pool: KVPool, wanted: Pages, what: str, provider: BackendProvider | None = None
) -> None:
    """Fail unless the pool holds ``wanted``, every bit of it."""
    found = read(provider or exam.provider, pool)
    exam.check(
        found.shape == wanted.shape, f"{what}: {pool.layout} shows as {found.shape} altogether."
    )
    for layer in range(wanted.shape[0]):
        for kind, word in ((KEYS, "keys"), (VALUES, "values")):
            exam.equal_bits(
                found[layer, kind], wanted[layer, kind], f"{what}: {word} of layer {layer}"
            )
