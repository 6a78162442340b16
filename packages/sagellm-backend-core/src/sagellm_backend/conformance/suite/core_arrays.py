"""Core: arrays keep their bits, their shape and their distance from each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import BackendError

Array = np.ndarray[Any, Any]

_SHAPES = ((), (0,), (3, 0, 2), (1,), (7,), (4097,), (13, 5), (1, 1, 1), (2, 3, 5, 7), (129, 1))


def array_dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """Every dtype that the descriptor speaks of, and those of ids and positions."""
    spoken = {*capability.supported_dtypes, *capability.kv.dtypes, DType.INT32, DType.INT64}
    return tuple(dtype for dtype in DType if dtype in spoken)


def _bits(exam: Exam, shape: tuple[int, ...], dtype: DType) -> Array:
    """Any bits at all, NaN of every kind included."""
    target = dtype.numpy
    count = int(np.prod(shape))
    return np.frombuffer(exam.rng.bytes(count * target.itemsize), target).reshape(shape).copy()


def _locations(exam: Exam) -> list[str]:
    kind, count = exam.provider.device_type, len(exam.capability.devices)
    return ["device", "host", *(f"{kind}:{index}" for index in range(count))]


@case("core", params={"dtype": array_dtypes})
def arrays_round_trip(exam: Exam) -> None:
    """Arrays of every shape come back bit for bit: no dimension, no element, odd lengths, NaN.

    At every location, host memory too. Kills a dtype of another width, a copy that drops the last
    byte or the payload of a NaN, a scalar that becomes a vector.
    """
    dtype = exam["dtype"]
    for shape in _SHAPES:
        data = _bits(exam, shape, dtype)
        for location in _locations(exam):
            array = exam.provider.from_numpy(data, location)
            what = f"{dtype.value}{shape} at {location}"
            exam.check(
                tuple(array.shape) == shape and dtype_of(array) is dtype,
                f"{what} became {dtype_of(array).value}{tuple(array.shape)}.",
            )
            exam.equal_bits(exam.provider.to_numpy(array), data, what)


@case("core", params={"dtype": array_dtypes})
def copies_are_copies(exam: Exam) -> None:
    """What went in and what came out belongs to the caller: writing to it changes no array.

    Kills a provider that keeps the caller's memory, or shows its own.
    """
    provider, dtype = exam.provider, exam["dtype"]
    source = _bits(exam, (33, 3), dtype)
    wanted = source.copy()
    array = provider.from_numpy(source)
    source.view(np.uint8)[...] ^= 0xFF
    exam.equal_bits(provider.to_numpy(array), wanted, "after the source was overwritten")
    out = provider.to_numpy(array)
    exam.check(out.flags.writeable, "to_numpy() gave an array that cannot be written.")
    out.view(np.uint8)[...] ^= 0xFF
    exam.equal_bits(provider.to_numpy(array), wanted, "after a copy was overwritten")


@case("core", params={"dtype": array_dtypes})
def any_strides_go_in(exam: Exam) -> None:
    """Host arrays go in with their elements in order, however they lie in memory.

    Kills a copy of the raw buffer: slices, transposes, reversed and broadcast arrays come out wrong.
    """
    base = _bits(exam, (6, 7, 4), exam["dtype"])
    frozen = base.copy()
    frozen.setflags(write=False)
    for words, view in (
        ("every second row", base[::2]),
        ("every third column", base[:, ::3]),
        ("a transpose", base.T),
        ("swapped axes", base.swapaxes(0, 1)),
        ("reversed", base[::-1, :, ::-1]),
        ("broadcast", np.broadcast_to(base[0], (3, 7, 4))),
        ("Fortran order", np.asfortranarray(base)),
        ("read-only", frozen),
        ("an offset of one element", base.reshape(-1)[1:]),
        ("a scalar view", base[2, 3, 1, ...]),
    ):
        got = exam.provider.to_numpy(exam.provider.from_numpy(view))
        exam.equal_bits(got, np.ascontiguousarray(view).reshape(view.shape), words)


@case("core", params={"dtype": array_dtypes})
def empty_has_shape_and_dtype(exam: Exam) -> None:
    """``empty`` gives every shape, at every location, and promises nothing of the contents.

    Kills a zero-size request that fails, a size that is rounded, a location that is ignored.
    """
    dtype = exam["dtype"]
    for shape in (*_SHAPES, 5):
        wanted = (shape,) if isinstance(shape, int) else shape
        for location in _locations(exam):
            for spelling in (dtype, dtype.value, dtype.numpy):
                array = exam.provider.empty(shape, spelling, location)
                out = exam.provider.to_numpy(array)
                exam.check(
                    tuple(array.shape) == out.shape == wanted and dtype_of(out) is dtype,
                    f"empty({shape}, {dtype.value}, {location!r}) is {out.dtype}{out.shape}.",
                )


@case("core")
def reshape_keeps_the_order(exam: Exam) -> None:
    """``reshape`` changes the shape and nothing else, and refuses sizes that do not fit.

    Kills a reshape that transposes, and one that drops what does not fit.
    """
    data = exam.fill((6, 4), DType.FP32)
    array = exam.provider.from_numpy(data)
    for shape in ((24,), (2, 12), (2, 3, 4), (6, -1), (1, 6, 4)):
        got = exam.provider.to_numpy(array.reshape(shape))
        exam.equal_bits(got, data.reshape(shape), f"reshaped to {shape}")
    exam.equal_bits(exam.provider.to_numpy(array), data, "the array that was reshaped")
    try:
        array.reshape((5, 5))
    except (BackendError, ValueError, RuntimeError):
        return
    exam.check(condition=False, message="24 elements were reshaped to (5, 5).")


@case("core", params={"dtype": array_dtypes})
def slices_keep_their_elements(exam: Exam) -> None:
    """``array[start:stop]`` in any dimensions is that part, of which a part may be had again.

    Kills a slice that begins at the first element, and one that takes its part for contiguous.
    """
    data = _bits(exam, (7, 12, 6), exam["dtype"])
    array = exam.provider.from_numpy(data)
    keys: tuple[tuple[slice, ...], ...] = (
        (slice(2, 5),),
        (slice(None), slice(4, 12)),
        (slice(1, 7), slice(0, 3), slice(2, 5)),
        (slice(None), slice(None), slice(5, None)),
        (slice(None, -2), slice(-3, None)),
    )
    for key in keys:
        part = array[key]
        exam.equal_bits(exam.provider.to_numpy(part), data[key], f"the part {key}")
        exam.equal_bits(exam.provider.to_numpy(part[1:2]), data[key][1:2], f"row 1 of {key}")
    rows = array.reshape(7, 72)[:, 12:36]
    shaped = exam.provider.to_numpy(rows.reshape(7, 4, 6))
    exam.equal_bits(shaped, data[:, 2:6], "columns that were reshaped")
    exam.equal_bits(exam.provider.to_numpy(array), data, "the array that was sliced")


@case("core")
def live_arrays_are_distinct(exam: Exam) -> None:
    """No two live arrays share a byte, whatever is freed and made between them.

    Sizes are odd, so that rounding to a page, a line or a word shows at the neighbours. Kills an
    allocator that hands memory out twice, too early or too small.
    """
    provider = exam.provider
    live: list[tuple[Any, Array]] = []
    for step in range(200):
        size = int(exam.rng.integers(0, 700)) | 1
        data = exam.rng.integers(0, 256, size, np.uint8).view(np.int8)
        live.append((provider.from_numpy(data), data))
        if step % 3 == 2:
            del live[int(exam.rng.integers(len(live)))]
        if step % 5 == 4:
            provider.empty((size, 3), DType.FP32)
    for place, (array, data) in enumerate(live):
        exam.equal_bits(provider.to_numpy(array), data, f"array {place} of {len(live)}")


def _writes_caches(capability: CapabilityDescriptor) -> str | None:
    return None if "kv_write" in capability.operations else "no operation writes in place"


@case("core", needs=_writes_caches)
def writes_stay_inside(exam: Exam) -> None:
    """A write to every byte of one array leaves its neighbours, before and behind it, as they were.

    By the backend's kernel, and by the host's reference that stands in for one. Kills a write that
    goes on past the end, and a write-back to another array.
    """
    dtype = exam.capability.operations["kv_write"][0]
    shape = (3, 1, 1, 5)
    for provider in (exam.provider, exam.make(reference_only=True)):
        data = [exam.fill(shape, dtype) for _ in range(9)]
        arrays = [provider.from_numpy(item) for item in data]
        kernel = provider.get_kernel("kv_write", dtype=dtype)
        new = [exam.fill((3, 1, 5), dtype) for _ in range(2)]
        slots = np.arange(3, dtype=np.int64)
        kernel(
            *(provider.from_numpy(item) for item in new),
            arrays[3],
            arrays[5],
            provider.from_numpy(slots),
        )
        data[3], data[5] = (item.reshape(shape) for item in new)
        for place, (array, wanted) in enumerate(zip(arrays, data, strict=True)):
            exam.equal_bits(provider.to_numpy(array), wanted, f"array {place} of 9")
