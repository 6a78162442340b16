"""What is claimed of KV pools is given, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import layout_for
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.kv import KVLayout
from sagellm_backend.kv.layout import ORDERS, PACKINGS


@case("kv", requires=(Feature.KV_POOL,))
def layouts_are_kept_to_the_claims(exam: Exam) -> None:
    """Every claim of a layout is granted, and what is not claimed is refused and charged nothing.

    Kills: a dtype, order, packing, block size, index type or alignment that is claimed and not
    given, or given and not claimed.
    """
    provider, kv = exam.provider, exam.capability.kv
    plain = layout_for(exam.capability)
    for alignment in (1, 64, 4096, kv.alignment):
        if alignment <= kv.alignment:
            provider.kv_pool(_aligned(plain, alignment), 2).close()
    before = provider.memory_stats()["allocated_bytes"]
    for layout in _unclaimed(exam.capability, plain):
        exam.refuses(CapabilityError, provider.kv_pool, layout, 2, says=(provider.name,))
    for arguments in ((plain, 0), (plain, -1), (plain, 1.5), (None, 2), (plain, 2, "moon")):
        exam.refuses(InvalidArgumentError, provider.kv_pool, *arguments)
    after = provider.memory_stats()["allocated_bytes"]
    exam.check(after == before, f"Refused pools left {after - before} bytes charged.")


@case("kv", without=Feature.KV_POOL)
def absent_pools_are_refused(exam: Exam) -> None:
    """Without a claim of KV pools every way to one is refused by a CapabilityError.

    Kills: AttributeError or None where a feature is absent, and a claim that is forgotten.
    """
    layout = KVLayout(2, 2, 16, 4, DType.FP16)
    exam.refuses(CapabilityError, exam.provider.kv_pool, layout, 2)


@case("kv", without=Feature.KV_HOST_POOL, requires=(Feature.KV_POOL,))
def absent_host_pools_are_refused(exam: Exam) -> None:
    """Without a claim of host pools one in host memory is refused by a CapabilityError.

    Kills: device memory given where host memory was asked for.
    """
    layout = layout_for(exam.capability)
    exam.refuses(CapabilityError, exam.provider.kv_pool, layout, 2, "host", says=("kv_host_pool",))
    exam.check(exam.provider.memory_stats("host")["kv_bytes"] == 0, "It was charged.")


def _aligned(layout: KVLayout, alignment: int) -> KVLayout:
    """A layout of the same kind whose blocks are multiples of ``alignment``."""
    factor = max(1, alignment // layout.block_bytes)
    return replace(layout, head_dim=layout.head_dim * factor, alignment=alignment)


def _unclaimed(capability: CapabilityDescriptor, plain: KVLayout) -> Iterator[KVLayout]:
    kv = capability.kv
    for dtype in DType:
        if dtype not in kv.dtypes:
            yield replace(plain, dtype=dtype, alignment=1)
    for order in set(ORDERS) - set(kv.orders):
        yield replace(plain, order=order)
    for packing in set(PACKINGS) - set(kv.packings):
        yield replace(plain, packing=packing)
    for index in {DType.INT32, DType.INT64} - {kv.index_dtype}:
        yield replace(plain, index_dtype=index)
    too_large = max(kv.block_sizes, default=kv.max_block_size) + 1
    yield replace(plain, block_size=too_large, alignment=1)
    above = 1 << kv.alignment.bit_length()
    yield replace(plain, head_dim=above, alignment=above)
