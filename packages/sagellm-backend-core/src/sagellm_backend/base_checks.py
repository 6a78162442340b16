"""What the public methods of a provider check alike."""

from __future__ import annotations

from typing import Any

from sagellm_backend.capability import Feature
from sagellm_backend.checks import check_choice, shown
from sagellm_backend.devices import parse_device_str
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, UnavailableError
from sagellm_backend.hooks import Place, ProviderHooks
from sagellm_backend.memory import MemoryLedgers


class ProviderChecks(ProviderHooks):
    """A provider's state, and the refusals that depend on it."""

    closed: bool
    _ledgers: MemoryLedgers

    def require(self, feature: Feature) -> None:
        """Raise :class:`CapabilityError` unless ``feature``, or the one of that name, is declared."""
        word = Feature(check_choice("feature", feature, [item.value for item in Feature])).value
        declared = self._features()
        if word not in declared:
            listed = ", ".join(sorted(item.value for item in declared))
            raise CapabilityError(
                word, self.name, "it is not declared.", hint=f"Declared are {listed}."
            )

    def _require_open(self) -> None:
        if self.closed:
            raise UnavailableError(
                f"This {self.name} provider is closed.", hint="Make a new one with get_provider()."
            )

    def _require_native(self, name: str, array: Any) -> None:
        if not self._is_native(array):
            raise InvalidArgumentError(
                f"{name} must be an array of backend {self.name!r}, not {type(array).__name__}.",
                hint="Make one with backend.from_numpy(...).",
            )

    def _place(self, location: str) -> Place:
        word: object = location  # arrays, too, compare with strings
        if isinstance(word, str) and word in {"device", "host"}:
            return Place(word, self.device)
        device_type, index = parse_device_str(location)
        count = self._device_count()
        if device_type != self.device_type or (index or 0) >= count:
            raise InvalidArgumentError(
                f"{shown(location)} is no location of backend {self.name!r}.",
                hint=f"Use 'device', 'host', or {self.device_type}:0 to :{count - 1}.",
            )
        return Place("device", self._device_name(index or 0))

    def _array_dtype(self, dtype: Any) -> DType:
        parsed = DType.parse(dtype)
        if parsed not in self._array_dtypes():
            listed = ", ".join(item.value for item in self._array_dtypes())
            raise CapabilityError(
                f"arrays of {parsed.value}", self.name, "no such type.", hint=f"There are {listed}."
            )
        return parsed
