"""Accuracy: how far a result is from the float64 reference, in units of what rounding explains.

For accumulated results the ratio is ``|got - ref| / (u_acc * magnitude + u_out * |ref|)``, where
``magnitude`` is the sum of the absolute values of the terms behind an element, ``u_acc`` the unit
roundoff of fp32 and ``u_out`` that of the output's dtype. A correct kernel stays within a small
number whatever the data; a wrong accumulation, scale or mask does not (Higham, "Accuracy and
Stability of Numerical Algorithms", 2nd ed., chapter 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sagellm_backend.conformance.subnormals import smallest_normal, smallest_subnormal
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.shapes import infer
from sagellm_backend.ops.table import Arguments, Array, Operation

_ENOUGH = 256
"""Elements from which the mean square of the ratios says more than the highest."""


class Ratio(NamedTuple):
    """The worst output of a call: highest ratio, root mean square, what is allowed, and where."""

    r_max: float
    r_rms: float
    bound: float
    rms_bound: float
    detail: str

    @property
    def passed(self) -> bool:
        """Whether both ratios are within their bounds."""
        return self.r_max <= self.bound and self.r_rms <= self.rms_bound


def ratio(
    operation: Operation,
    arguments: Arguments,
    got: Any,
    dtype: DType,
    *,
    exact: bool = False,
    flushes: bool = False,
) -> Ratio:
    """Judge what an implementation made of ``arguments`` (as :meth:`Operation.bind` gives them).

    ``got`` is the result as NumPy: an array, or a sequence of the outputs and then of the arguments
    that the operation mutates. ``exact`` asks for the reference's values without tolerance, for
    cases whose sums are exact. ``flushes`` says that subnormal numbers of ``dtype`` may be taken for
    zero, so that as much as the smallest normal one may be lost; else half a subnormal step may, as
    rounding does. Raises :class:`InvalidArgumentError` if ``got`` has not as many
    arrays as the operation.
    """
    outputs: Sequence[Any] = [got] if isinstance(got, np.ndarray) else list(got)
    args = operation.output_args()
    if len(outputs) != len(args):
        raise InvalidArgumentError(
            f"{operation.name} has {len(args)} results to judge, {len(outputs)} were given."
        )
    bindings = operation.check(arguments)
    wanted = operation.exact_results(arguments)
    magnitudes = operation.magnitude(**arguments) if operation.magnitude else wanted
    found = []
    for index, arg in enumerate(args):
        problem = _form_problem(outputs[index], infer(arg.spec, bindings), arg, dtype)
        if problem:
            return _refused(f"output {index} {problem}")
        kind = Accuracy.EXACT if exact else arg.accuracy or operation.accuracy
        bounds = (operation.bound, operation.rms_bound)
        if kind is Accuracy.EXACT:
            bitwise = operation.accuracy is Accuracy.EXACT
            ratios, bounds = _mismatches(outputs[index], wanted[index], bitwise=bitwise), (0.0, 0.0)
        elif kind is Accuracy.STATISTICAL:
            assert operation.draw_errors is not None
            ratios = operation.draw_errors(outputs[index], **arguments)
        elif kind is Accuracy.ROUNDED:
            ratios, bounds = _units(outputs[index], wanted[index], flushes=flushes), (1.0, 1.0)
        else:
            lost = _lost(outputs[index], flushes=flushes)
            ratios = _accumulated(outputs[index], wanted[index], magnitudes[index], lost)
            terms = bindings[operation.positive_sum] if operation.positive_sum else 0
            bounds = (bounds[0] + math.sqrt(terms), bounds[1] + math.sqrt(terms) / 8)
        found.append(_summary(index, ratios, bounds, outputs[index], wanted[index]))
    return max(found, key=lambda item: (not item.passed, item.r_max / (item.bound or 1.0)))


def _form_problem(got: Any, shape: tuple[int, ...], arg: Arg, dtype: DType) -> str | None:
    wanted = dtype if arg.dtype == "T" else arg.dtypes[0]
    if not isinstance(got, np.ndarray):
        return f"is no array but {type(got).__name__}"
    if got.shape != shape or dtype_of(got) is not wanted:
        return f"is {dtype_of(got).value}{got.shape}, wanted {wanted.value}{shape}"
    return None


def _refused(detail: str) -> Ratio:
    return Ratio(math.inf, math.inf, 0.0, 0.0, detail)


def _summary(
    index: int, ratios: Array, bounds: tuple[float, float], got: Array, wanted: Array
) -> Ratio:
    bound, rms_bound = bounds
    if not ratios.size:
        return Ratio(0.0, 0.0, bound, bound, f"output {index} is empty")
    place = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    where = ", ".join(str(int(axis)) for axis in place)
    detail = f"output {index} at ({where}): {float(got[place])}, wanted {float(wanted[place]):.9g}"
    rms_bound = rms_bound if ratios.size >= _ENOUGH else bound
    r_rms = float(np.sqrt(np.mean(np.square(ratios))))
    return Ratio(float(ratios[place]), r_rms, bound, rms_bound, detail)


def _mismatches(got: Array, wanted: Array, *, bitwise: bool) -> Array:
    """1 where an element differs, else 0; NaN equals NaN, and 0 equals -0 unless ``bitwise``."""
    rounded = _round(wanted, got)
    same = (got == rounded) | (np.isnan(_wide(got)) & np.isnan(_wide(rounded)))
    if bitwise:
        same &= (np.signbit(_wide(got)) == np.signbit(_wide(rounded))) | np.isnan(_wide(got))
    return np.asarray(~same, np.float64)


def _lost(got: Array, *, flushes: bool) -> float:
    """What an element may lose near zero."""
    dtype = dtype_of(got)
    return smallest_normal(dtype) if flushes else smallest_subnormal(dtype) / 2


def _units(got: Array, wanted: Array, *, flushes: bool) -> Array:
    """Errors in units of the last place of the wanted value."""
    _, exponent = np.frexp(np.abs(wanted))
    place = np.ldexp(dtype_of(got).unit_roundoff, exponent)
    return _errors(got, wanted, np.maximum(place, 2 * _lost(got, flushes=flushes)))


def _accumulated(got: Array, wanted: Array, magnitude: Array, lost: float) -> Array:
    dtype = dtype_of(got)
    explained = DType.FP32.unit_roundoff * magnitude + dtype.unit_roundoff * np.abs(wanted)
    return _errors(got, wanted, explained + lost)


def _errors(got: Array, wanted: Array, unit: Array) -> Array:
    """``|got - wanted| / unit``; infinities of the rounded reference must be met, no other made."""
    rounded = _wide(_round(wanted, got))
    with np.errstate(over="ignore", invalid="ignore"):
        ratios = np.abs(_wide(got) - wanted) / unit
    met = (_wide(got) == rounded) | (np.isnan(_wide(got)) & np.isnan(rounded))
    ordinary = np.isfinite(rounded) & np.isfinite(_wide(got))
    result: Array = np.where(ordinary, ratios, np.where(met, 0.0, np.inf))
    return result


def _round(wanted: Array, like: Array) -> Array:
    with np.errstate(over="ignore"):
        return wanted.astype(like.dtype)


def _wide(array: Array) -> Array:
    return array.astype(np.float64)
