"""Collectives that compute: reductions, their bits, and what a half type cannot hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.collectives import Communicator, ReduceOp
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.groups import GROUP, floats, join, same_everywhere
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError

ARITHMETIC = (ReduceOp.SUM, ReduceOp.MAX, ReduceOp.MIN, ReduceOp.PROD)
BITWISE = (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR)
INTEGERS = (DType.INT32, DType.INT64)
SIZES = (1, 5, 1000, 100_003)
Array = npt.NDArray[Any]


def half(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    """fp16, where it is declared."""
    return tuple(dtype for dtype in floats(capability) if dtype is DType.FP16)


@case("collective", requires=GROUP, params={"dtype": floats}, world=2)
def floats_of_two_ranks_are_reduced(exam: Exam) -> None:
    """Every reduction of two ranks is within rounding of the exact one, and the same on both.

    Kills: an average for a sum, one rank's array for the result, a reduction with another's name.
    """
    _reduce_floats(exam)


@case("collective", requires=GROUP, params={"dtype": floats}, world=3)
def floats_of_three_ranks_are_reduced(exam: Exam) -> None:
    """Where the order of a sum matters, every rank has the same bits, within world * u * sum |x|.

    Kills: sums that each rank adds in an order of its own, on which tensor parallelism would part.
    """
    _reduce_floats(exam)


@case("collective", requires=GROUP, params={"dtype": INTEGERS}, world=2)
def integers_are_reduced_exactly(exam: Exam) -> None:
    """Integers are reduced without error, the bitwise reductions included.

    A provider may refuse bitwise reductions, all of them, by a CapabilityError. Kills: integers
    that are reduced as floats, and a bitwise reduction that is another.
    """
    group, dtype = join(exam), exam["dtype"]
    limit = 2 ** (dtype.bits // 2 - 2)  # so that a product fits, and not in a float of that size
    for op in ARITHMETIC:
        for size in SIZES[:3]:
            parts = exam.rng.integers(-limit, limit, (exam.world, size)).astype(dtype.numpy)
            _expect_exact(exam, group, parts, op)
    parts = exam.fill((exam.world, 257), dtype)
    refused = [op.value for op in BITWISE if _is_refused(exam, group, parts, op)]
    exam.check(len(refused) in {0, len(BITWISE)}, f"Of the bitwise ones {refused} are refused.")


@case("collective", requires=GROUP, params={"dtype": half}, world=2)
def half_sums_overflow_to_infinity(exam: Exam) -> None:
    """A sum above the range of fp16 is an infinity of its sign; the largest number itself is kept.

    Kills: sums that saturate, wrap around, or become NaN, so that nobody notices.
    """
    group = join(exam)
    pairs = [(60000, 60000), (-60000, -60000), (65504, 0), (32752, 32752), (65504, 65504), (-1, 1)]
    parts = np.array(pairs, np.float16).T
    got = _all_reduce(exam, group, parts[exam.rank], ReduceOp.SUM)
    wanted = np.array([np.inf, -np.inf, 65504, 65504, np.inf, 0], np.float16)
    exam.equal_bits(got, wanted, "Sums at the edge of fp16")


@case("collective", requires=GROUP, params={"dtype": floats}, world=2)
def special_numbers_survive_reductions(exam: Exam) -> None:
    """Infinities and NaN of one rank show in the result of all.

    Kills: a sum that drops NaN, and an infinity that turns into a number.
    """
    group, dtype = join(exam), exam["dtype"]
    parts = np.array([[np.nan, np.inf, np.inf, 1], [1, 1, -np.inf, 1]], np.float32)
    got = _all_reduce(exam, group, parts[exam.rank].astype(dtype.numpy), ReduceOp.SUM)
    found = got.astype(np.float32).tolist()
    exam.check(np.isnan(found[0]) and np.isnan(found[2]), f"NaN was lost: {found}.")
    exam.check(found[1] == np.inf and found[3] == 2, f"An infinity was lost: {found}.")
    same_everywhere(exam, group, got[[1, 3]])


@case("collective", requires=GROUP, params={"dtype": floats}, world=2)
def scattered_sums_are_parts_of_the_sum(exam: Exam) -> None:
    """reduce_scatter gives each rank its part, in every reduction, and leaves its input alone.

    Kills: parts of another rank, a first size that is not divided, and an input that is overwritten.
    """
    group, dtype = join(exam), exam["dtype"]
    for op in (*ARITHMETIC, ReduceOp.AVG):
        parts = exam.rng.standard_normal((exam.world, 4 * exam.world, 3)).astype(dtype.numpy)
        array = exam.provider.from_numpy(parts[exam.rank])
        got = exam.provider.to_numpy(group.reduce_scatter(array, op))
        mine = slice(4 * exam.rank, 4 * exam.rank + 4)
        _check_near(exam, got, parts[:, mine], op, dtype)
        exam.equal_bits(exam.provider.to_numpy(array), parts[exam.rank], "The input of a scatter")
    odd = exam.provider.from_numpy(np.zeros(2 * exam.world + 1, dtype.numpy))
    exam.refuses(InvalidArgumentError, group.reduce_scatter, odd, says=(2 * exam.world + 1,))


def _reduce_floats(exam: Exam) -> None:
    group, dtype = join(exam), exam["dtype"]
    for op in (*ARITHMETIC, ReduceOp.AVG):
        for size in SIZES:
            parts = exam.rng.standard_normal((exam.world, size)).astype(dtype.numpy)
            got = _all_reduce(exam, group, parts[exam.rank], op)
            _check_near(exam, got, parts, op, dtype)
            same_everywhere(exam, group, got)


def _all_reduce(exam: Exam, group: Communicator, part: Array, op: ReduceOp) -> Array:
    array = exam.provider.from_numpy(part)
    back = group.all_reduce(array, op)
    exam.check(back is array, "all_reduce did not return the array that it reduced in place.")
    found: Array = exam.provider.to_numpy(array)
    return found


def _check_near(exam: Exam, got: Array, parts: Array, op: ReduceOp, dtype: DType) -> None:
    """Largest and smallest exactly; sums within world * u * sum |x|, Higham 2002, section 4.2."""
    wide = parts.astype(np.float64)
    if op in {ReduceOp.MAX, ReduceOp.MIN}:
        wanted = wide.max(axis=0) if op is ReduceOp.MAX else wide.min(axis=0)
        exam.equal_bits(got, wanted.astype(dtype.numpy), f"{op.value} of {exam.world} ranks")
        return
    wanted, magnitude = wide.sum(axis=0), np.abs(wide).sum(axis=0)
    if op is ReduceOp.PROD:
        wanted, magnitude = wide.prod(axis=0), np.abs(wide.prod(axis=0))
    elif op is ReduceOp.AVG:
        wanted, magnitude = wanted / exam.world, magnitude / exam.world
    exam.check(got.shape == wanted.shape, f"{op.value} has shape {got.shape}, not {wanted.shape}.")
    tiny = float(np.finfo(np.float32).tiny) if dtype is not DType.FP16 else 2.0**-24
    allowed = exam.world * (dtype.unit_roundoff * magnitude + tiny)
    ratio = float((np.abs(got.astype(np.float64) - wanted) / allowed).max())
    exam.check(
        ratio <= 1, f"{op.value} of {exam.world} ranks is {ratio:.3g} times what is allowed."
    )
    exam.measure(f"{op.value}_r_max", max(ratio, exam.metrics.get(f"{op.value}_r_max", 0.0)))


def _is_refused(exam: Exam, group: Communicator, parts: Array, op: ReduceOp) -> bool:
    try:
        _expect_exact(exam, group, parts, op)
    except CapabilityError:
        return True
    return False


def _expect_exact(exam: Exam, group: Communicator, parts: Array, op: ReduceOp) -> None:
    functions = {
        ReduceOp.SUM: np.add,
        ReduceOp.MAX: np.maximum,
        ReduceOp.MIN: np.minimum,
        ReduceOp.PROD: np.multiply,
        ReduceOp.BAND: np.bitwise_and,
        ReduceOp.BOR: np.bitwise_or,
        ReduceOp.BXOR: np.bitwise_xor,
    }
    wanted = functions[op].reduce(parts, axis=0, dtype=parts.dtype)
    exam.equal_bits(_all_reduce(exam, group, parts[exam.rank], op), wanted, op.value)


@case("collective", without=Feature.COLLECTIVE)
def absent_collectives_are_refused(exam: Exam) -> None:
    """Without a claim of collectives a group is refused by a CapabilityError, and none is listed.

    Kills: None or NotImplementedError for what is absent, and a list that promises more.
    """
    capability = exam.capability
    exam.refuses(CapabilityError, exam.provider.communicator, 0, 1, says=("collective",))
    exam.check(not capability.has_collective, "has_collective is set, and the feature is not.")
    exam.check(not capability.supported_collectives, "Collectives are listed and not declared.")
