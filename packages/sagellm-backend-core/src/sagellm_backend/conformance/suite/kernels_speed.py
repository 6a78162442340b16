"""Speed of operations: what a served model spends its time on, against what the device can do."""

from __future__ import annotations

from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.speed import GIGA, Meter, report, sized
from sagellm_backend.conformance.workloads import (
    Calls,
    Copy,
    Decode,
    Linear,
    Norm,
    served,
    streaming,
    widest,
)

_ROWS = 4
_SIZES = (256, 512, 1024, 2048, 4096)
_BUSY_S = 0.002


@case("kernels", depth="standard", params={"dtype": widest})
def speed_of_copies_in_the_device(exam: Exam) -> None:
    """GB/s read and written by gathering rows in random order, against gathering neighbours.

    Kills a device that says too
    early that it is done, and one that does not do all that it is given.
    """
    work = sized(exam, lambda nbytes: Copy(exam, exam["dtype"], nbytes, shuffle=True))
    report(exam, "gb_per_s", GIGA, [work, *streaming(exam)])


@case("kernels", depth="standard", params={"dtype": widest})
def speed_of_calls(exam: Exam) -> None:
    """Calls per second of a resolved kernel on arrays so small that the call is all there is.

    Kills a device that loses calls which come fast.
    """
    report(exam, "calls_per_s", 1.0, [Meter(Calls(exam, exam["dtype"]))])


@case("kernels", depth="standard", params={"dtype": served("linear")})
def speed_of_decode_linear(exam: Exam) -> None:
    """GB/s of weights read by products of 4 rows, as in decoding, against a copy in the device.

    So few rows cost less arithmetic than reading does. Kills a kernel that does not compute again when only its input has changed.
    """
    work = sized(exam, lambda nbytes: Decode(exam, exam["dtype"], _ROWS, nbytes))
    report(exam, "gb_per_s", GIGA, [work, *streaming(exam)])


@case("kernels", depth="standard", params={"dtype": served("linear")})
def speed_of_prefill_linear(exam: Exam) -> None:
    """TFLOP/s of products of some hundred rows, as in prefill, against a large square product.

    The limit is the product of the same weight with four times the rows: more arithmetic for each
    byte. Kills a kernel that gives back what it computed before.
    """
    dtype = exam["dtype"]
    square = sized(exam, lambda size: Linear(exam, dtype, size, size), _SIZES, _BUSY_S)
    size = square.work.size
    report(exam, "tflop_per_s", 1e12, [Meter(Linear(exam, dtype, size // 4, size)), square])


@case("kernels", depth="standard", params={"dtype": served("rms_norm")})
def speed_of_rms_norm(exam: Exam) -> None:
    """GB/s read and written by the normalisation of many rows, against a copy in the device.

    Kills a kernel that keeps the weight of an earlier call.
    """
    work = sized(exam, lambda nbytes: Norm(exam, exam["dtype"], nbytes))
    report(exam, "gb_per_s", GIGA, [work, *streaming(exam)])
