"""Core: the descriptor is well formed, consistent with itself, and the caller's own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sagellm_backend.capability import CONTRACT_VERSION, CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType
from sagellm_backend.kv.layout import ORDERS, PACKINGS
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.spec import ARRAY_FRAMEWORKS

_NEEDS = {
    Feature.STREAM_QUERY: Feature.STREAM,
    Feature.STREAM_PRIORITY: Feature.STREAM,
    Feature.EVENT: Feature.STREAM,
    Feature.EVENT_TIMING: Feature.EVENT,
    Feature.KV_HOST_POOL: Feature.KV_POOL,
    Feature.KV_PEER_COPY: Feature.KV_POOL,
    Feature.KV_EXPORT: Feature.KV_POOL,
}


@case("core")
def fields_and_features_agree(exam: Exam) -> None:
    """Protocol's fields say the same as the features, and no feature lacks what it stands on.

    Kills a provider that claims a stream in one place and denies it in another.
    """
    seen = exam.capability
    for field, feature in (
        ("has_stream", Feature.STREAM),
        ("has_event", Feature.EVENT),
        ("has_collective", Feature.COLLECTIVE),
        ("has_graph_exec", Feature.GRAPH),
        ("has_kv_block_copy", Feature.KV_POOL),
    ):
        declared = feature in seen.features
        exam.check(
            getattr(seen, field) is declared,
            f"{field} is {getattr(seen, field)}, and {feature.value} in features is {declared}.",
        )
    for feature, ground in _NEEDS.items():
        exam.check(
            feature not in seen.features or ground in seen.features,
            f"{feature.value} is declared without {ground.value}.",
        )
    collectives = bool(seen.supported_collectives)
    exam.check(
        collectives == seen.has_collective,
        f"has_collective is {seen.has_collective}, collectives are {seen.supported_collectives}.",
    )
    exam.check(
        not seen.has_kv_block_migrate or len(seen.devices) > 1,
        "has_kv_block_migrate is declared with one device.",
    )
    exam.check(
        Feature.KV_PEER_COPY not in seen.features or len(seen.devices) > 1,
        "kv_peer_copy is declared with one device.",
    )


@case("core")
def descriptor_is_well_formed(exam: Exam) -> None:
    """Names, versions, dtypes, limits and devices of the descriptor are of the kinds they claim.

    Kills a descriptor with a wrong name, unit, dtype or count.
    """
    seen, provider = exam.capability, exam.provider
    exam.check(seen.provider == provider.name, f"{seen.provider!r} is not {provider.name!r}.")
    exam.check(seen.device_type == provider.device_type, f"device_type is {seen.device_type!r}.")
    exam.check(
        seen.array_framework == provider.array_framework in ARRAY_FRAMEWORKS,
        f"array_framework is {seen.array_framework!r}, the provider's {provider.array_framework!r}.",
    )
    major, minor = seen.contract
    exam.check(
        (major, minor) == provider.contract
        and major == CONTRACT_VERSION[0]
        and minor <= CONTRACT_VERSION[1],
        f"contract {seen.contract} does not fit core's {CONTRACT_VERSION}.",
    )
    exam.check(bool(seen.device_name), "device_name is empty.")
    exam.check(
        bool(seen.versions) and all(_is_text(v) for pair in seen.versions.items() for v in pair),
        f"versions are {seen.versions}, wanted the framework's and the driver's.",
    )
    _check_devices(exam, seen)
    _check_memory(exam, seen)
    limits = vars(seen.limits)
    bad = [name for name, limit in limits.items() if limit is not None and limit < 1]
    exam.check(not bad, f"limits below 1: {bad}.")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _check_devices(exam: Exam, seen: CapabilityDescriptor) -> None:
    indices = [device.index for device in seen.devices]
    exam.check(
        bool(indices) and indices == list(range(len(indices))),
        f"devices have the indices {indices}, wanted 0 upwards.",
    )
    exam.check(all(device.name for device in seen.devices), "a device has no name.")
    pairs = [(a, b) for a, b in seen.peer_access if a == b or not {a, b} <= {*indices}]
    exam.check(not pairs, f"peer_access has {pairs}, devices are {indices}.")


def _check_memory(exam: Exam, seen: CapabilityDescriptor) -> None:
    total, free = seen.total_memory_bytes, seen.available_memory_bytes
    exam.check(
        isinstance(total, int) and isinstance(free, int) and 0 <= free <= total,
        f"available_memory_bytes {free} of total_memory_bytes {total} cannot be.",
    )
    exam.check(
        seen.max_memory_mb is None or seen.max_memory_mb == (total or 0) >> 20,
        f"max_memory_mb is {seen.max_memory_mb}, total_memory_bytes {total}.",
    )


@case("core")
def claims_have_known_names(exam: Exam) -> None:
    """Operations, kernel families, dtypes and layouts are those that the contract knows.

    Kills an operation of an unknown name, a family without an operation, a dtype named twice.
    """
    seen = exam.capability
    for name, dtypes in seen.operations.items():
        exam.check(name in OPERATIONS, f"{name!r} is no operation of the table.")
        exam.check(
            bool(dtypes) and set(dtypes) <= set(FLOATING) and len({*dtypes}) == len(dtypes),
            f"{name} is declared for {dtypes}, wanted some of {FLOATING}, each once.",
        )
    kinds = {OPERATIONS[name].kind for name in seen.operations}
    exam.check(
        set(seen.supported_kernels) == kinds,
        f"supported_kernels are {seen.supported_kernels}, the operations are of {kinds}.",
    )
    arrays = seen.supported_dtypes
    exam.check(
        bool(arrays) and all(isinstance(item, DType) for item in arrays),
        f"supported_dtypes are {arrays}.",
    )
    exam.check(len({*arrays}) == len(arrays), f"supported_dtypes repeat themselves: {arrays}.")
    kv = seen.kv
    exam.check(
        bool(kv.dtypes and kv.orders and kv.packings) == (Feature.KV_POOL in seen.features),
        f"kv_pool is in features or the layouts are empty, not both: {kv}.",
    )
    exam.check(
        {*kv.orders} <= {*ORDERS} and {*kv.packings} <= {*PACKINGS},
        f"orders {kv.orders} or packings {kv.packings} are unknown.",
    )
    exam.check(
        kv.alignment > 0 and not kv.alignment & (kv.alignment - 1),
        f"kv.alignment {kv.alignment} is no power of two.",
    )
    exam.check(
        min((*kv.block_sizes, kv.max_block_size)) > 0, f"block sizes below 1 are allowed: {kv}."
    )


@case("core")
def descriptor_is_plain_data(exam: Exam) -> None:
    """``to_dict()`` is JSON, and comes back from it unchanged.

    Kills a descriptor that carries a framework's object, a set of mixed types or a NaN.
    """
    try:
        text = json.dumps(exam.capability.to_dict(), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        exam.check(condition=False, message=f"to_dict() is not JSON: {error}.")
        return
    exam.check(json.loads(text) == exam.capability.to_dict(), "to_dict() changes through JSON.")


@case("core")
def descriptor_is_the_callers_own(exam: Exam) -> None:
    """Whoever changes a descriptor changes no other.

    Kills a provider that hands out one shared descriptor, or shared lists inside new ones.
    """
    before = _lasting(exam.provider.capability())
    spoilt = exam.provider.capability()
    spoilt.supported_dtypes.clear()
    spoilt.supported_kernels.clear()
    spoilt.supported_collectives.append("nonsense")
    spoilt.operations.clear()
    spoilt.versions["nonsense"] = "1"
    for device in spoilt.devices:
        device.facts["nonsense"] = "1"
    spoilt.provider, spoilt.has_stream = "nonsense", not spoilt.has_stream
    after = _lasting(exam.provider.capability())
    exam.check(after == before, f"the next descriptor was changed too: {after}, was {before}.")


@case("core")
def descriptor_does_not_change(exam: Exam) -> None:
    """Two descriptors are equal but for free memory: in time, and from provider to provider.

    Kills capability that depends on a mood: a claim dropped after the first use, a random order.
    """
    first = _lasting(exam.capability)
    kept = [exam.provider.from_numpy(exam.fill((64, 33), dtype)) for dtype in FLOATING[:1]]
    for words, provider in (
        ("the one that the plan was made from", exam.provider),
        ("that of another provider", exam.make()),
    ):
        found = _lasting(provider.capability())
        exam.check(found == first, f"the descriptor differs from {words}: {found}, was {first}.")
    exam.check(len(kept) == 1, "the array was lost.")


def _lasting(descriptor: CapabilityDescriptor) -> dict[str, Any]:
    return replace(descriptor, available_memory_bytes=None).to_dict()
