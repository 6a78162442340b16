"""Core: bad arguments of every public method are refused by our errors, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pools import plain_layout
from sagellm_backend.conformance.suite.core_arrays import array_dtypes
from sagellm_backend.conformance.suite.core_memory import own
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    InvalidArgumentError,
    OperatorNotFoundError,
)

_NAN = float("nan")
_JUNK: tuple[Any, ...] = (None, "x", 1.5, _NAN, -1, object(), [], {})


@contextmanager
def _nothing_changes(exam: Exam) -> Iterator[None]:
    """The block's refusals leave accounts and descriptor as they were, and an array whole."""
    data = exam.fill((17, 3), DType.FP32)
    array = exam.provider.from_numpy(data)
    before = own(exam), own(exam, location="host")
    yield
    after = own(exam), own(exam, location="host")
    exam.check(after == before, f"what was refused changed {before} to {after}.")
    exam.equal_bits(exam.provider.to_numpy(array), data, "an array after refusals")


@case("core")
def bad_shapes_are_refused(exam: Exam) -> None:
    """A shape is made of whole numbers from 0 up, of a size that memory can have.

    Kills a negative size, a rounded one, a size that wraps around at 64 bits.
    """
    sizes: tuple[Any, ...] = (-1, 1.0, _NAN, "3", None, True, object(), 1 << 70)
    shapes = [*sizes, *((size,) for size in sizes), *((2, size) for size in sizes), {3}, {"a": 1}]
    huge: list[Any] = [(1 << 62,), (1 << 32, 1 << 32), (0, 1 << 62), (1,) * 40, (1 << 63, 0)]
    with _nothing_changes(exam):
        for shape in [*(item for item in shapes if item is not True), *huge]:
            exam.refuses(InvalidArgumentError, exam.provider.empty, shape, DType.FP32)


@case("core")
def bad_dtypes_are_refused(exam: Exam) -> None:
    """What is no dtype is refused by name; a dtype that arrays cannot have is no feature.

    Kills a dtype that becomes another in silence.
    """
    data = np.zeros(3, np.float32)
    with _nothing_changes(exam):
        for junk in ("fp7", "float", "", None, 3, object, np.float64, "float64", "complex64", [1]):
            exam.refuses(InvalidArgumentError, exam.provider.empty, 3, junk)
        for host in (
            data.astype(np.float64),
            data.astype(np.complex64),
            data.astype(bool),
            data.astype(np.uint16),
            np.zeros(3, ">f4"),
            np.array(["text"]),
            np.array([None]),
            np.zeros(2, [("a", np.float32)]),
        ):
            exam.refuses(InvalidArgumentError, exam.provider.from_numpy, host)
        for dtype in set(DType) - set(array_dtypes(exam.capability)):
            exam.refuses(CapabilityError, exam.provider.empty, 3, dtype, says=(dtype.value,))


@case("core")
def bad_locations_are_refused(exam: Exam) -> None:
    """A location is ``device``, ``host``, or a device of this backend that exists.

    Kills a location that falls back to the default.
    """
    provider = exam.provider
    beyond = f"{provider.device_type}:{len(exam.capability.devices)}"
    other = "cuda:0" if provider.device_type != "cuda" else "npu:0"
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda place: provider.empty(3, DType.FP32, place),
        lambda place: provider.from_numpy(np.zeros(3, np.float32), place),
    )
    with _nothing_changes(exam):
        for junk in ("", "nowhere", "Host", " device", other, beyond, 0, b"host", ("host",)):
            for call in calls:
                exam.refuses(InvalidArgumentError, call, junk)
            exam.refuses(InvalidArgumentError, provider.memory_stats, junk)
        for call in calls:
            exam.refuses(InvalidArgumentError, call, None)


@case("core")
def foreign_arrays_are_no_arrays(exam: Exam) -> None:
    """What is no array of this backend is refused wherever one is wanted.

    Kills a conversion in silence, and AttributeError.
    """
    provider = exam.provider
    for junk in (*_JUNK, np.zeros(3, np.float32), memoryview(b"abc")):
        for call in (provider.to_numpy, provider.all_reduce, provider.all_gather):
            exam.refuses(InvalidArgumentError, call, junk)
    array = provider.from_numpy(np.zeros(3, np.float32))
    for junk in ("telepathy", None, 3):
        exam.refuses(InvalidArgumentError, provider.all_reduce, array, junk)
    with _nothing_changes(exam):
        for junk in (object(), {"a": 1}, [[1, 2], [3]], "text", None):
            exam.refuses(InvalidArgumentError, provider.from_numpy, junk)


@case("core")
def bad_names_of_kernels_are_refused(exam: Exam) -> None:
    """A kernel is named by a text, and what is registered can be called.

    Kills a kernel table that takes anything for a key.
    """
    provider = exam.provider
    for junk in (None, 3, b"softmax", ["softmax"]):
        for call in (provider.get_kernel, provider.supports, provider.explain):
            exam.refuses(InvalidArgumentError, call, junk)
        exam.refuses(InvalidArgumentError, provider.register_kernel, junk, print)
    for empty in ("", "  "):
        exam.refuses(OperatorNotFoundError, provider.get_kernel, empty)
        exam.refuses(InvalidArgumentError, provider.register_kernel, empty, print)
    for impl in (None, "print", 3):
        exam.refuses(InvalidArgumentError, provider.register_kernel, "telepathy", impl)
    exam.refuses(OperatorNotFoundError, provider.get_kernel, "telepathy")


@case("core")
def bad_config_is_refused(exam: Exam) -> None:
    """A provider is not made from a setting that is unknown, or of a wrong type or range.

    Kills a setting that is ignored.
    """
    bad: dict[str, tuple[Any, ...]] = {
        "device": (-1, len(exam.capability.devices), 1.0, "0", None, True),
        "memory_limit": (0, -1, 1.5, _NAN, "1G", True, 1 << 80),
        "kv_blocks": (0, -1, 2.5, None, "many", 1 << 40),
        "kv_layout": (None, {}, "NHD"),
        "fallback": ("maybe", 3, None, {"softmax": "maybe"}),
        "reference_only": (1, None, "yes"),
        "telepathy": (1,),
    }
    for name, values in bad.items():
        for value in values:
            exam.refuses(InvalidArgumentError, exam.make, **{name: value})


@case("core")
def bad_batches_are_refused(exam: Exam) -> None:
    """Attention metadata is refused where lengths, tables and sizes do not fit each other.

    Kills a length below 1, a table that is too short, a -1 where a block is needed.
    """
    build = exam.provider.attention_metadata
    bad: tuple[tuple[Any, ...], ...] = (
        ([],),
        ([0],),
        ([-1],),
        ([1.5],),
        ([_NAN],),
        (None,),
        ("12",),
        ([[1]],),
        ([1 << 40],),
        ([3], [2]),
        ([1, 1], [5]),
        ([1], [5], [[0]], 4),
        ([1], [5], [[0, -1]], 4),
        ([1], [5], [[0, 1]]),
        ([1], [5], [[0, 1]], 0),
        ([1], [5], [[0, 1]], -4),
        ([1], [5], [[0, 1]], 4.0),
        ([1], [5], [[0, 1], [2, 3]], 4),
        ([1], [5], [0, 1], 4),
        ([1], [5], None, 4),
    )
    for arguments in bad:
        exam.refuses(InvalidArgumentError, build, *arguments)
    exam.check(build([1], [5], [[0, 1]], 4).batch == 1, "a good batch is refused after bad ones.")


@case("core", requires=(Feature.KV_POOL,))
def bad_kv_requests_are_refused(exam: Exam) -> None:
    """Pools, plans and blocks refuse what is no layout, count, pool or block of this provider.

    Kills a foreign pool that is taken, and a token count that is rounded.
    """
    provider, layout = exam.provider, plain_layout(exam)
    dtype = layout.dtype
    foreign = exam.make(kv_blocks=8)
    foreign_pool, foreign_block = foreign.kv_pool(layout, 2), foreign.kv_block_alloc(3, dtype)
    with _nothing_changes(exam):
        for junk in _JUNK:
            exam.refuses(InvalidArgumentError, provider.kv_pool, junk, 1)
            exam.refuses(InvalidArgumentError, provider.kv_pool, layout, junk)
            exam.refuses(InvalidArgumentError, provider.kv_block_alloc, junk, dtype)
            exam.refuses(InvalidArgumentError, provider.kv_block_free, junk)
            exam.refuses(InvalidArgumentError, provider.kv_copy_plan, junk, junk)
        for count in (0, True, 1 << 40):
            exam.refuses(BackendError, provider.kv_pool, layout, count)
        exam.refuses(InvalidArgumentError, provider.kv_block_alloc, 0, dtype)
        exam.refuses(InvalidArgumentError, provider.kv_block_alloc, 1, "fp7")
        exam.refuses(InvalidArgumentError, provider.kv_pool, layout, 1, "nowhere")
        exam.refuses(InvalidArgumentError, provider.kv_block_free, foreign_block)
        exam.refuses(InvalidArgumentError, provider.kv_block_copy, foreign_block, foreign_block)
        exam.refuses(
            InvalidArgumentError,
            provider.kv_copy_plan,
            foreign_pool,
            foreign_pool,
            says=("source",),
        )
