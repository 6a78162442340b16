"""Faults of a provider's life, and of what it finds and explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sagellm_backend.capability import Feature
from sagellm_backend.config import ProviderConfig
from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.errors import CapabilityError, UnavailableError
from sagellm_backend.hooks import Place
from sagellm_backend.ops.dispatch import Explanation, KernelTable
from sagellm_backend.reference.provider import ReferenceProvider


@member(
    "core",
    "require() passes every feature",
    kills=("core.require_speaks_for_the_features",),
)
class RequirePassesAll(ReferenceProvider):
    def require(self, feature: Feature) -> None:
        Feature(feature)


@member(
    "core",
    "A declared operation has no kernel",
    kills=("core.declared_operations_resolve",),
)
class DeclaredOperationIsMissing(ReferenceProvider):
    def _register_kernels(self, table: KernelTable) -> None:
        super()._register_kernels(table)
        del table._implementations["gelu"]


@member(
    "core",
    "An operation without a kernel is computed on the host in silence",
    kills=("core.declared_operations_resolve",),
)
class FallsBackInSilence(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(replace(ProviderConfig.parse(config), fallback="allow"))

    def _register_kernels(self, table: KernelTable) -> None:
        super()._register_kernels(table)
        del table._implementations["gelu"]


@member(
    "core",
    "An unknown operation is answered with None",
    kills=("core.undeclared_operations_are_refused",),
)
class UnknownOperationIsNone(ReferenceProvider):
    def get_kernel(self, name: str, **static: Any) -> Any:
        try:
            return super().get_kernel(name, **static)
        except KeyError:
            return None


@member(
    "core",
    "The provider is of another device type than its entry point",
    kills=("core.entry_point_agrees",),
)
class EntryPointDisagrees(ReferenceProvider):
    device_type = "simulated"


@member("core", "A closed provider works on", kills=("core.a_closed_provider_refuses",))
class ProviderOutlivesItsClose(ReferenceProvider):
    def _require_open(self) -> None:
        return


@member("core", "Closing twice is an error", kills=("core.a_closed_provider_refuses",))
class CloseTwiceFails(ReferenceProvider):
    def close(self) -> None:
        if self.closed and getattr(self, "_twice", True):
            self._twice = False
            raise UnavailableError("This provider is closed already.")
        super().close()


@member(
    "core",
    "No second provider can be made while one is open",
    kills=("core.closing_one_leaves_the_other",),
)
class DeviceIsExclusive(ReferenceProvider):
    _open = 0

    def __init__(self, config: Any = None) -> None:
        if DeviceIsExclusive._open:
            raise UnavailableError("The device is busy.")
        super().__init__(config)
        DeviceIsExclusive._open += 1

    def close(self) -> None:
        if not self.closed:
            DeviceIsExclusive._open -= 1
        super().close()


@member(
    "core",
    "Locations that do not exist are taken for the default",
    kills=("core.bad_locations_are_refused",),
)
class AnyLocationIsTaken(ReferenceProvider):
    def _place(self, location: str) -> Place:
        try:
            return super()._place(location)
        except ValueError:
            return Place("device", self.device)


@member(
    "core",
    "supports() finds no reason against anything",
    kills=("core.undeclared_operations_are_refused",),
)
class SupportsEverything(ReferenceProvider):
    def supports(self, name: str, **static: Any) -> list[str]:
        super().supports(name)
        return []


@member(
    "core",
    "explain() names a kernel that does not run",
    kills=("core.declared_operations_resolve",),
)
class ExplainsWrongly(ReferenceProvider):
    def explain(self, name: str, **static: Any) -> Explanation:
        return replace(super().explain(name, **static), fallback=True, chosen="reference")


@member(
    "core",
    "A kernel of the caller's own is not used",
    kills=("core.custom_kernels_belong_to_one_provider",),
)
class OwnKernelsAreIgnored(ReferenceProvider):
    def register_kernel(self, name: str, impl: Callable[..., Any]) -> None:
        del name, impl


@member("core", "Absence is an AttributeError", kills=("core.require_speaks_for_the_features",))
class AbsenceIsAnAttributeError(ReferenceProvider):
    def require(self, feature: Feature) -> None:
        try:
            super().require(feature)
        except CapabilityError as error:
            raise AttributeError(str(error)) from error
