"""The light object behind an entry point: a backend's name, its probe and the way to build it.

Loading a spec imports no provider and no framework; calling it builds the provider.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from sagellm_backend.capability import CONTRACT_VERSION
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.errors import BackendError, InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from sagellm_backend.base import BackendProvider

ARRAY_FRAMEWORKS = ("torch", "paddle", "numpy")
"""The frameworks whose arrays a provider may speak."""

PRIORITIES: Mapping[str, int] = MappingProxyType(
    {"cuda": 400, "dcu": 390, "ascend": 300, "kunlun": 200, "cpu": 100, "reference": 0}
)
"""Rank of the backends of this project: automatic choice takes the highest that is available."""

PROVIDER_METHODS = (
    "capability",
    "clear_cache",
    "create_event",
    "create_stream",
    "get_kernel",
    "kv_block_alloc",
    "kv_block_copy",
    "kv_block_free",
    "kv_block_migrate",
    "memory_stats",
    "register_kernel",
)
"""The methods by which a provider of Protocol v0.1 is known."""

_WORD = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ProbeState(str, Enum):
    """What a probe found."""

    AVAILABLE = "available"
    """Hardware and stack are there; the backend can be built."""
    ABSENT = "absent"
    """There is no such hardware, or the user has hidden it."""
    BROKEN = "broken"
    """The hardware is there, its stack is not usable: an error, never a silent fall to the CPU."""
    UNSUPPORTED = "unsupported"
    """The hardware is there and this release does not serve it: passed over aloud."""

    __hash__ = str.__hash__


@dataclass(frozen=True)
class Probe:
    """The answer of a probe: devices when available, else a reason and a remedy.

    ``devices`` may also be filled for ``BROKEN`` and ``UNSUPPORTED``, as far as they are known.
    """

    state: ProbeState
    devices: tuple[DeviceInfo, ...] = ()
    reason: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        if not _is_state(self.state):
            raise InvalidArgumentError(f"{self.state!r} is not a ProbeState.")
        if self.state is ProbeState.AVAILABLE and not self.devices:
            raise InvalidArgumentError("A probe that answers AVAILABLE must name its devices.")
        if self.state is not ProbeState.AVAILABLE and not self.reason:
            raise InvalidArgumentError(f"A probe that answers {self.state.name} must say why.")

    @classmethod
    def available(cls, *devices: DeviceInfo) -> Probe:
        """The backend can be built on these devices."""
        return cls(ProbeState.AVAILABLE, devices)

    @classmethod
    def absent(cls, reason: str, remedy: str = "") -> Probe:
        """There is no such hardware here."""
        return cls(ProbeState.ABSENT, (), reason, remedy)

    @classmethod
    def broken(cls, reason: str, remedy: str, devices: tuple[DeviceInfo, ...] = ()) -> Probe:
        """The hardware is there, and something that the remedy names stands in the way."""
        return cls(ProbeState.BROKEN, devices, reason, remedy)

    @classmethod
    def unsupported(
        cls, reason: str, remedy: str = "", devices: tuple[DeviceInfo, ...] = ()
    ) -> Probe:
        """The hardware is there, and this release does not serve it."""
        return cls(ProbeState.UNSUPPORTED, devices, reason, remedy)


@dataclass(frozen=True)
class BackendSpec:
    """What an entry point of ``sagellm.backends`` loads.

    ``name`` and ``aliases`` are what users write (lower case), ``device_type`` is what the array
    framework calls the device. ``probe`` takes no argument, imports no framework and starts no
    driver. ``factory`` takes the config and returns a new provider; written ``"module:function"``
    it is imported only when a provider is built. ``contract`` is the version that the provider was
    built for: a package released apart from core writes the numbers down. ``automatic=False`` keeps
    the backend out of automatic choice. ``package`` is the distribution that errors name.

    Raises :class:`InvalidArgumentError` for a field of the wrong kind.
    """

    name: str
    device_type: str
    priority: int
    array_framework: str
    probe: Callable[[], Probe]
    factory: Callable[[Any], Any] | str
    aliases: tuple[str, ...] = ()
    contract: tuple[int, int] = CONTRACT_VERSION
    automatic: bool = True
    package: str = ""

    def __post_init__(self) -> None:
        if not _is_tuple(self.aliases):
            self._refuse(f"aliases must be a tuple, not {self.aliases!r}")
        for name in self.names:
            if not _is_word(name) or name == "auto":
                self._refuse(
                    f"{name!r} cannot name a backend",
                    "Use lower-case letters, digits, '_' and '-'; 'auto' is taken.",
                )
        if len(set(self.names)) < len(self.names):
            self._refuse(f"its names {self.names} repeat themselves")
        if not _is_word(self.device_type):
            self._refuse(f"device_type {self.device_type!r} is not a device word")
        if self.array_framework not in ARRAY_FRAMEWORKS:
            self._refuse(
                f"array_framework {self.array_framework!r} is unknown",
                f"Known are {', '.join(ARRAY_FRAMEWORKS)}.",
            )
        if not _is_int(self.priority):
            self._refuse(f"priority must be an int, not {self.priority!r}")
        if not _is_version(self.contract):
            self._refuse(f"contract must be (major, minor), not {self.contract!r}")
        if not callable(self.probe):
            self._refuse(f"probe must be callable, not {self.probe!r}")
        if not (callable(self.factory) or _is_target(self.factory)):
            self._refuse(f"factory must be callable or 'module:function', not {self.factory!r}")

    def _refuse(self, problem: str, hint: str | None = None) -> NoReturn:
        raise InvalidArgumentError(f"BackendSpec {self.name!r}: {problem}.", hint=hint)

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then the aliases."""
        return (self.name, *self.aliases)

    def __call__(self, config: Any = None) -> BackendProvider:
        """Build a new provider; see :func:`build`."""
        return build(self, config, self.package)


def build(spec: BackendSpec, config: Any, origin: str) -> BackendProvider:
    """Build a provider of ``spec`` and check that it has the methods of v0.1.

    A :class:`BackendError` of the factory passes unchanged. Anything else becomes an
    :class:`UnavailableError` that names ``origin`` (the distribution) and has the first error as
    its cause.
    """
    where = f"Backend {spec.name!r}" + (f" of {origin}" if origin else "")
    try:
        provider = _resolve(spec.factory)(config)
    except BackendError:
        raise
    except (Exception, SystemExit) as error:
        raise UnavailableError(
            f"{where} could not be built: {describe(error)}",
            hint="`sagellm-backend doctor` shows what is installed and what is missing.",
        ) from error
    missing = missing_methods(provider)
    if missing:
        raise UnavailableError(
            f"{where} built a {type(provider).__name__}, which is no provider: it lacks "
            f"{', '.join(missing)}.",
            hint="Derive the provider from sagellm_backend.BackendProvider.",
        )
    built: BackendProvider = provider
    return built


def missing_methods(candidate: object) -> list[str]:
    """The methods of v0.1 that a provider, or a class of providers, does not have."""
    return [name for name in PROVIDER_METHODS if not callable(getattr(candidate, name, None))]


def contract_problem(contract: tuple[int, int]) -> tuple[str, str] | None:
    """Why a provider built for ``contract`` cannot run on this core, and who has to upgrade.

    ``None`` when it can: the major version is core's, and the minor one is not newer.
    """
    theirs, ours = (".".join(map(str, version)) for version in (contract, CONTRACT_VERSION))
    if contract[0] == CONTRACT_VERSION[0] and contract[1] <= CONTRACT_VERSION[1]:
        return None
    reason = f"built for contract {theirs}, and this core speaks {ours}"
    if contract > CONTRACT_VERSION:
        return reason, "Upgrade sagellm-backend-core."
    return reason, "Upgrade the package of the backend, or install the core that it was built for."


def describe(error: BaseException) -> str:
    """Type and first line of an error."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _resolve(factory: Callable[[Any], Any] | str) -> Callable[[Any], Any]:
    if not isinstance(factory, str):
        return factory
    module, _, function = factory.partition(":")
    found: Callable[[Any], Any] = getattr(import_module(module), function)
    return found


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_target(value: object) -> bool:
    return isinstance(value, str) and _TARGET.fullmatch(value) is not None


def _is_state(value: object) -> bool:
    return isinstance(value, ProbeState)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_version(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(_is_int(part) and part >= 0 for part in value)
    )
