"""Kernels: every operation of the table but attention, case by case against its reference.

The cases come from the table: an operation that is added there is examined without a line here.
"""

from __future__ import annotations

import inspect
from typing import Any

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.calls import (
    claims,
    compare,
    labels,
    native_call,
    operations,
    results,
    small_cases,
)
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.operations import judge
from sagellm_backend.errors import CapabilityError
from sagellm_backend.ops import OPERATIONS, Operation
from sagellm_backend.ops.args import Accuracy


def _declare(operation: Operation) -> None:
    def examined(exam: Exam) -> None:
        compare(exam, operation)

    def needs(capability: CapabilityDescriptor) -> str | None:
        declared = capability.operations.get(operation.name)
        return None if declared else f"{operation.name} is declared in no dtype"

    examined.__name__ = operation.name
    examined.__doc__ = f"""``{operation.name}`` is as near to its float64 reference as it must be.

    No other argument is changed. Kills another formula, a sum in a narrow type, another rounding.
    """
    case(
        "kernels",
        params={
            "dtype": lambda capability: capability.operations.get(operation.name, ()),
            "case": lambda _: labels(operation),
        },
        needs=needs,
    )(examined)


for _operation in OPERATIONS.values():
    if _operation.name != "attention":
        _declare(_operation)


@case("kernels", params={"claim": claims})
def declared_is_not_always_refused(exam: Exam) -> None:
    """Of the generated cases of a declared operation at least one finds a kernel.

    Kills a claim whose kernels refuse whatever is asked of them.
    """
    operation, dtype = exam["claim"].operation, exam["claim"].dtype
    for found in operation.inputs(exam.rng, dtype):
        statics = operation.statics_of(operation.bind((), found))
        try:
            exam.provider.get_kernel(operation.name, **statics)
        except CapabilityError:
            continue
        return
    exam.check(condition=False, message=f"every case of {exam['claim'].label} is refused.")


@case("kernels", params={"claim": claims})
def same_call_same_bits(exam: Exam) -> None:
    """The same arguments give the same bits again, where no sum may change its order.

    Sums may, where atomic additions make them: how many elements then differ is measured. Kills a
    kernel that reads memory which nobody wrote, and a sampler with random numbers of its own.
    """
    operation, dtype = exam["claim"].operation, exam["claim"].dtype
    for arguments in small_cases(exam, operation, dtype):
        runs = [results(exam, operation, native_call(exam, arguments)) for _ in range(3)]
        differ = sum(
            int(one.tobytes() != again.tobytes())
            for run in runs[1:]
            for one, again in zip(runs[0], run, strict=True)
        )
        exam.measure("results_that_differ", differ)
        exam.check(
            not differ or operation.accuracy is Accuracy.ACCUMULATED,
            f"{operation.name} gave {differ} results that differ from its first.",
        )


@case("kernels", params={"operation": operations})
def calls_by_position(exam: Exam) -> None:
    """A kernel takes its arrays by position as well, and may be called without its defaults.

    Kills a kernel whose parameters stand in another order, or have other defaults.
    """
    operation = exam["operation"]
    dtype = exam.capability.operations[operation.name][0]
    kernel = exam.provider.get_kernel(operation.name)
    parameters = inspect.signature(operation.reference).parameters

    def by_position(**arguments: Any) -> Any:
        given = {
            name: value
            for name, value in arguments.items()
            if value is not parameters[name].default
            or parameters[name].default is inspect.Parameter.empty
        }
        placed = [
            given.pop(name)
            for name in tuple(given)
            if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        return kernel(*placed, **given)

    for arguments in small_cases(exam, operation, dtype):
        flushes = dtype in exam.capability.flush_subnormals
        found = judge(exam.provider, operation, by_position, arguments, dtype, flushes=flushes)
        exam.check(found.passed, f"{operation.signature} by position: {found.detail}.")
