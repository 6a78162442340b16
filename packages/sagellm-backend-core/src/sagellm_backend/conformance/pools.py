"""Pools that the suite makes to have caches as an engine has them: strided and shared."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType
from sagellm_backend.kv import KVLayout, KVPool

Array = np.ndarray[Any, Any]


def computed_kv_dtypes(operation: str) -> Any:
    """The dtypes that pools may have and ``operation`` is declared for."""

    def dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
        offered = capability.operations.get(operation, ())
        return tuple(dtype for dtype in capability.kv.dtypes if dtype in offered)

    return dtypes


def orders(capability: CapabilityDescriptor) -> tuple[str, ...]:
    """The orders that are declared."""
    return capability.kv.orders


def packings(capability: CapabilityDescriptor) -> tuple[str, ...]:
    """The packings that are declared."""
    return capability.kv.packings


def layout_of(exam: Exam, *, heads: int = 2, size: int = 32, layers: int = 2) -> KVLayout:
    """A layout in the dtype, order and packing of the case, of a block size that is declared."""
    kv = exam.capability.kv
    usual = min(16, kv.max_block_size)
    return KVLayout(
        num_layers=layers,
        num_kv_heads=heads,
        head_dim=size,
        block_size=usual if usual in (kv.block_sizes or (usual,)) else kv.block_sizes[0],
        dtype=exam["dtype"],
        order=exam["order"],
        packing=exam["packing"],
        alignment=min(64, kv.alignment),
        index_dtype=kv.index_dtype,
    )


def write(exam: Exam, pool: KVPool, layer: int, keys: Array, values: Array, slots: Array) -> None:
    """Write host keys and values of shape (tokens, heads, size) into slots by the backend's kernel."""
    provider = exam.provider
    kernel = provider.get_kernel("kv_write", dtype=pool.layout.dtype)
    kernel(
        key=provider.from_numpy(keys),
        value=provider.from_numpy(values),
        key_cache=pool.key_cache(layer),
        value_cache=pool.value_cache(layer),
        slots=provider.from_numpy(slots.astype(pool.layout.index_dtype.numpy)),
    )


def caches(exam: Exam, pool: KVPool, layer: int) -> tuple[Array, Array]:
    """Keys and values of a layer as NumPy."""
    to_numpy = exam.provider.to_numpy
    return to_numpy(pool.key_cache(layer)), to_numpy(pool.value_cache(layer))


def plain_layout(exam: Exam, dtype: DType | None = None) -> KVLayout:
    """A small layout that every provider with pools must offer: the first of what it declares."""
    kv = exam.capability.kv
    usual = min(16, kv.max_block_size)
    return KVLayout(
        num_layers=2,
        num_kv_heads=2,
        head_dim=64,
        block_size=usual if usual in (kv.block_sizes or (usual,)) else kv.block_sizes[0],
        dtype=dtype or kv.dtypes[0],
        order="NHD" if "NHD" in kv.orders else "HND",
        packing="separate" if "separate" in kv.packings else "packed",
        alignment=min(64, kv.alignment),
        index_dtype=kv.index_dtype,
    )
