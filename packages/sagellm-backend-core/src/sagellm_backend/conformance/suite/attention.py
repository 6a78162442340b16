"""Attention: the generated cases, and needles that have one right answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.calls import compare, judged, labels
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.operations import judge
from sagellm_backend.conformance.paged import ATTENTION, Paged, dtypes, random_cache
from sagellm_backend.conformance.pools import (
    computed_kv_dtypes,
    layout_of,
    orders,
    packings,
    write,
)
from sagellm_backend.errors import CapabilityError

_WRITTEN = computed_kv_dtypes("kv_write")


def _labels(_: CapabilityDescriptor) -> tuple[str, ...]:
    return labels(ATTENTION)


@case("attention", params={"dtype": dtypes, "case": _labels})
def attention(exam: Exam) -> None:
    """Attention is as near to its float64 reference as fp32 softmax and one rounding allow.

    Ragged and paged, prefill and decode, with grouped heads, windows, softcaps and sinks; unused
    slots hold NaN. Kills a wrong scale or mask, a head map, a narrow sum, a read of what is not
    there.
    """
    compare(exam, ATTENTION)


@case(
    "attention",
    depth="standard",
    params={
        "dtype": dtypes,
        "heads": ((4, 4), (8, 4), (8, 2), (8, 1), (6, 2)),
        "block_size": (1, 16, 32),
    },
)
def needles(exam: Exam) -> None:
    """The keys at both ends and at the edges of blocks can be found, by every group of heads.

    One key is aligned with the query, and its value says where it stands and of which head it is:
    the answer has no tolerance. Kills a kernel that misses the last key, takes a row for another,
    or reads another head's cache.
    """
    (heads, kv_heads), size, dtype = exam["heads"], exam["block_size"], exam["dtype"].numpy
    length, width = 67, 64
    targets = sorted({0, 1, size - 1, size, size + 1, 31, 32, 33, 63, 64, length - 2, length - 1})
    k = exam.rng.choice([-1.0, 1.0], (length, kv_heads, width)).astype(dtype)
    v = np.ones((length, kv_heads, width), dtype)
    v[:, :, 0] += np.arange(length, dtype=dtype)[:, None]
    v[:, :, 1] += np.arange(kv_heads, dtype=dtype)
    made = Paged.place(exam, [length], [k, v], size)
    lengths, table = [length] * len(targets), np.tile(made.table, (len(targets), 1))
    arguments = {
        "q": np.repeat(k[targets], heads // kv_heads, axis=1),
        "k": made.k,
        "v": made.v,
        "metadata": AttentionMetadata.build([1] * len(targets), lengths, table, size),
        # Aligned keys score 2 * 64, others 2 * N(0, 64): tens apart, and every other weight vanishes.
        "scale": 2.0,
    }
    judged(exam, ATTENTION, ATTENTION.bind((), arguments), exam["dtype"], exact=True)


@case("attention", params={"dtype": dtypes})
def shared_prefix(exam: Exam) -> None:
    """Sequences whose tables share blocks read the same keys there, each with its own tail.

    Kills a kernel that takes block ids for unique.
    """
    size = 16
    made = random_cache(exam, [48], size, kv_heads=2, width=32, spare=3)
    spare = [block for block in range(len(made.k)) if block not in made.table]
    for cache in (made.k, made.v):
        cache[spare] = exam.rng.standard_normal(cache[spare].shape).astype(cache.dtype)
    prefix = made.table[0][:2].tolist()
    table = [[*prefix, spare[0]], [*prefix, spare[1]], [*prefix, spare[0]], prefix]
    kv = [37, 41, 48, 32]
    q = made.queries(exam, 4, heads=4)
    metadata = AttentionMetadata.build([1] * 4, kv, table, size)
    _judge(exam, {"q": q, "k": made.k, "v": made.v, "metadata": metadata, "scale": 32**-0.5})


@case("attention", params={"dtype": dtypes})
def metadata_serves_every_layer(exam: Exam) -> None:
    """One metadata object serves the caches of several layers, one after the other and again.

    Kills a provider that keeps keys, and not only lengths and blocks, with the metadata.
    """
    made = random_cache(exam, [20, 35], 16, kv_heads=2, width=32)
    kernel = exam.provider.get_kernel("attention", dtype=exam["dtype"])
    metadata = exam.provider.attention_metadata([1, 1], [20, 35], made.table.tolist(), 16)
    for layer in (0, 1, 0):
        rows = made if layer == 0 else made.other(exam)
        arguments = ATTENTION.bind(
            (),
            {
                "q": rows.queries(exam, 2, heads=4),
                "k": rows.k,
                "v": rows.v,
                "metadata": AttentionMetadata.build([1, 1], [20, 35], made.table.tolist(), 16),
                "scale": 32**-0.5,
            },
        )

        def shared(**native: Any) -> Any:
            return kernel(**{**native, "metadata": metadata})

        flushes = exam["dtype"] in exam.capability.flush_subnormals
        found = judge(exam.provider, ATTENTION, shared, arguments, exam["dtype"], flushes=flushes)
        exam.check(found.passed, f"layer {layer} with shared metadata: {found.detail}.")


@case(
    "attention",
    requires=(Feature.KV_POOL,),
    params={
        "dtype": lambda capability: tuple(
            dtype for dtype in dtypes(capability) if dtype in _WRITTEN(capability)
        ),
        "order": orders,
        "packing": packings,
        "step": ("decode", "prefill"),
    },
)
def attention_over_a_pool(exam: Exam) -> None:
    """Attention reads what kv_write wrote, from the strided caches of a real pool.

    All other slots of the pool hold NaN. Kills a kernel that takes the cache for contiguous.
    """
    layout = layout_of(exam)
    size, blocks = layout.block_size, 9
    query, kv = (
        ([1, 1, 1], [1, size, 2 * size + 3])
        if exam["step"] == "decode"
        else ([4, 2], [5, 2 * size + 1])
    )
    made = random_cache(exam, kv, size, kv_heads=2, width=32, blocks=blocks)
    pool = exam.provider.kv_pool(layout, blocks)
    slots = np.arange(blocks * size)
    for layer in range(layout.num_layers):
        poison = np.full((len(slots), 2, 32), np.nan, layout.dtype.numpy)
        write(exam, pool, layer, poison, poison, slots)
    used = ~np.isnan(made.k.reshape(len(slots), -1).astype(np.float32)).any(axis=-1)
    keys, values = (cache.reshape(len(slots), 2, 32)[used] for cache in (made.k, made.v))
    write(exam, pool, 1, keys, values, slots[used])
    arguments = ATTENTION.bind(
        (),
        {
            "q": made.queries(exam, sum(query), heads=4),
            "k": made.k,
            "v": made.v,
            "metadata": AttentionMetadata.build(query, kv, made.table, size),
            "scale": 32**-0.5,
        },
    )
    kernel = _resolved(exam, arguments)
    if kernel is None:
        return

    def pooled(**native: Any) -> Any:
        return kernel(**{**native, "k": pool.key_cache(1), "v": pool.value_cache(1)})

    flushes = exam["dtype"] in exam.capability.flush_subnormals
    found = judge(exam.provider, ATTENTION, pooled, arguments, exam["dtype"], flushes=flushes)
    exam.check(found.passed, f"over a pool: {found.detail}.")
    exam.measure("r_max", found.r_max)


def _judge(exam: Exam, arguments: dict[str, Any]) -> None:
    judged(exam, ATTENTION, ATTENTION.bind((), arguments), exam["dtype"])


def _resolved(exam: Exam, arguments: dict[str, Any]) -> Any:
    try:
        return exam.provider.get_kernel("attention", **ATTENTION.statics_of(arguments))
    except CapabilityError:
        exam.measure("refused", 1)
        return None
