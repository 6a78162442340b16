"""Core: what is claimed is there, what is not is refused, and the entry point says the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    InvalidArgumentError,
    OperatorNotFoundError,
)
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.registry import report
from sagellm_backend.spec import BackendSpec, ProbeState


@case("core")
def require_speaks_for_the_features(exam: Exam) -> None:
    """``require`` passes what is declared, and refuses the rest naming feature and backend.

    Kills a provider whose checks and descriptor come from two lists.
    """
    for feature in Feature:
        if feature in exam.capability.features:
            exam.provider.require(feature)
        else:
            words = (feature.value, exam.provider.name)
            error = exam.refuses(CapabilityError, exam.provider.require, feature, says=words)
            exam.check(bool(error.hint), f"the refusal of {feature.value} names no next step.")
    for junk in ("telepathy", None, 3):
        exam.refuses(InvalidArgumentError, exam.provider.require, junk)


@case("core")
def declared_operations_resolve(exam: Exam) -> None:
    """Every declared operation has a kernel of the backend's own, in every dtype declared for it.

    Kills a claimed operation that nothing computes, or that only the host's reference does.
    """
    for name, dtypes in exam.capability.operations.items():
        for dtype in dtypes:
            what = f"{name} in {dtype.value}"
            reasons = exam.provider.supports(name, dtype=dtype)
            exam.check(reasons == [], f"{what} is declared, and refused: {reasons}.")
            exam.check(callable(exam.provider.get_kernel(name, dtype=dtype)), f"{what}: no kernel.")
            found = exam.provider.explain(name, dtype=dtype)
            exam.check(not found.fallback, f"{what} is computed by {found.chosen} on the host.")


@case("core")
def undeclared_operations_are_refused(exam: Exam) -> None:
    """What is not declared is refused when it is asked for: an operation, a dtype, a name.

    Kills a provider that computes what it denies, and one that answers None to an unknown name.
    """
    provider, declared = exam.provider, exam.capability.operations
    for name in OPERATIONS:
        for dtype in (item for item in DType if item not in declared.get(name, ())):
            exam.refuses(CapabilityError, provider.get_kernel, name, dtype=dtype, says=(name,))
            exam.check(
                provider.supports(name, dtype=dtype) != [],
                f"{name} in {dtype.value} is not declared, and supports() has no reason against it.",
            )
    asked: tuple[Callable[..., Any], ...] = (
        provider.get_kernel,
        provider.supports,
        provider.explain,
    )
    for call in asked:
        exam.refuses(OperatorNotFoundError, call, "telepathy", says=("telepathy",))


@case("core")
def entry_point_agrees(exam: Exam) -> None:
    """The backend's entry point is found by its name, and its probe says what the provider says.

    Kills a spec of another device type, framework or contract, and a probe that counts wrongly.
    """
    name, seen = exam.provider.name, exam.capability
    specs = [item.spec for item in report().found if item.spec and name in item.names]
    exam.check(len(specs) == 1, f"{len(specs)} entry points of sagellm.backends are named {name}.")
    spec = specs[0]
    assert spec is not None
    for field in ("device_type", "array_framework", "contract"):
        said, true = getattr(spec, field), getattr(seen, field)
        exam.check(said == true, f"{field} is {said!r} in the spec, {true!r} in the descriptor.")
    _check_probe(exam, spec)


def _check_probe(exam: Exam, spec: BackendSpec) -> None:
    try:
        first, second = spec.probe(), spec.probe()
    except BackendError as error:
        exam.check(condition=False, message=f"the probe raises: {error}.")
        return
    exam.check(first == second, f"two probes differ: {first} and {second}.")
    exam.check(
        first.state is ProbeState.AVAILABLE,
        f"the probe says {first.state.value} ({first.reason}), and a provider could be built.",
    )
    exam.check(
        len(first.devices) == len(exam.capability.devices),
        f"the probe finds {len(first.devices)} devices, "
        f"the descriptor has {len(exam.capability.devices)}.",
    )
