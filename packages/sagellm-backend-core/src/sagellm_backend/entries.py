"""One entry point of ``sagellm.backends``: loaded, recognised and probed in isolation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Protocol

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.spec import (
    PRIORITIES,
    BackendSpec,
    Probe,
    contract_problem,
    describe,
    missing_methods,
)

V01_REASON = "a v0.1 factory: it cannot be probed, name it to use it"


class EntryState(str, Enum):
    """What became of an entry: the states of a probe, and those of entries without one."""

    AVAILABLE = "available"
    ABSENT = "absent"
    BROKEN = "broken"
    UNSUPPORTED = "unsupported"
    UNPROBED = "unprobed"
    """Loaded and usable by name; in a report only v0.1 factories are left so."""
    FAULTED = "faulted"
    """It did not load, or its answer breaks the contract, or its name is taken twice."""
    NOT_ALLOWED = "not allowed"
    """Kept out by ``SAGELLM_BACKENDS_ALLOW``; it was not loaded."""
    IGNORED = "ignored"
    """Not a backend."""

    __hash__ = str.__hash__


class LoadableEntry(Protocol):
    """The part of :class:`importlib.metadata.EntryPoint` that is used here."""

    @property
    def name(self) -> str:
        """Name of the entry."""

    def load(self) -> Any:
        """Import the object that the entry names."""


@dataclass(frozen=True)
class Discovered:
    """One entry, or one spec registered in this process, and what is known of it.

    ``spec`` and ``probe`` are ``None`` as far as things did not get there; ``reason`` and
    ``remedy`` are empty for an available backend.
    """

    entry: str
    distribution: str
    version: str
    state: EntryState
    spec: BackendSpec | None = None
    probe: Probe | None = None
    reason: str = ""
    remedy: str = ""

    @property
    def name(self) -> str:
        """The backend's name, or the entry's where no spec was loaded."""
        return self.spec.name if self.spec else self.entry.strip().lower()

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then the aliases."""
        return self.spec.names if self.spec else (self.name,)

    @property
    def priority(self) -> int:
        """The spec's priority; without a spec, that of this project's backend of the name."""
        return self.spec.priority if self.spec else PRIORITIES.get(self.name, 0)

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()

    @property
    def why(self) -> str:
        """Reason and remedy; empty for an available backend."""
        # The remedy may be a command to copy: no full stop is added to it.
        return f"{self.reason.rstrip('.')}. {self.remedy}".rstrip() if self.reason else ""

    @property
    def summary(self) -> str:
        """What a one-line listing says: the devices, or the reason and, for faults, the remedy."""
        if self.state is not EntryState.AVAILABLE or self.probe is None:
            faulty = self.state in (EntryState.BROKEN, EntryState.FAULTED)
            return self.why if faulty else self.reason
        first, more = self.probe.devices[0].name, len(self.probe.devices) - 1
        return f"{first} (and {more} more)" if more else first

    def with_fault(self, reason: str, remedy: str) -> Discovered:
        """The same entry, faulted."""
        return replace(self, state=EntryState.FAULTED, reason=reason, remedy=remedy)

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain data."""
        devices = self.probe.devices if self.probe else ()
        return {
            "name": self.name,
            "aliases": list(self.names[1:]),
            "entry": self.entry,
            "distribution": self.distribution,
            "version": self.version,
            "state": self.state.value,
            "priority": self.priority,
            "automatic": bool(self.spec and self.spec.automatic),
            "array_framework": self.spec.array_framework if self.spec else None,
            "device_type": self.spec.device_type if self.spec else None,
            "contract": list(self.spec.contract) if self.spec else None,
            "devices": [_device(device) for device in devices],
            "reason": self.reason,
            "remedy": self.remedy,
        }


def load_entry(entry: LoadableEntry, distribution: str, version: str) -> Discovered:
    """Load one entry and say what it is; its backend is not probed yet.

    Whatever the loaded code raises becomes a fault of the entry (only ``KeyboardInterrupt`` and
    its like pass).
    """
    blank = Discovered(entry.name, distribution, version, EntryState.FAULTED)
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
        return blank.with_fault(
            f"its entry point does not load: {describe(error)}",
            f"Repair or uninstall {distribution}.",
        )
    if isinstance(loaded, BackendSpec):
        return _check_contract(replace(blank, spec=loaded, state=EntryState.UNPROBED))
    if not is_v01_factory(loaded):
        return replace(blank, state=EntryState.IGNORED, reason=f"not a backend but {_kind(loaded)}")
    try:
        spec = adapt_v01(entry.name, loaded)
    except InvalidArgumentError as error:
        return blank.with_fault(describe(error), f"Ask the makers of {distribution} to rename it.")
    return replace(blank, spec=spec, state=EntryState.UNPROBED, reason=V01_REASON)


def fresh_entry(spec: BackendSpec, distribution: str) -> Discovered:
    """A spec that came by another way than an entry point, not yet probed."""
    reason = V01_REASON if spec.probe is _unprobeable else ""
    return Discovered(spec.name, distribution, "", EntryState.UNPROBED, spec, reason=reason)


def probe_entry(found: Discovered) -> Discovered:
    """The entry with its backend probed. What the probe raises becomes a fault."""
    if found.spec is None or found.state is not EntryState.UNPROBED:
        return found
    if found.spec.probe is _unprobeable:
        return found
    remedy = f"Report it to the makers of {found.distribution}."
    try:
        probe = found.spec.probe()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
        return found.with_fault(f"its probe failed: {describe(error)}", remedy)
    if not isinstance(probe, Probe):
        return found.with_fault(f"its probe answered {type(probe).__name__}, not Probe", remedy)
    return replace(
        found,
        probe=probe,
        state=EntryState(probe.state.value),
        reason=probe.reason,
        remedy=probe.remedy,
    )


def is_v01_factory(candidate: object) -> bool:
    """Whether this is a factory ``f(config=None)`` or a provider class of Protocol v0.1."""
    if isinstance(candidate, type):
        return not missing_methods(candidate)
    return inspect.isroutine(candidate) and _arity(candidate) is not None


def adapt_v01(name: str, factory: Callable[..., Any]) -> BackendSpec:
    """A spec around a v0.1 factory: by name only, never chosen automatically, not probed.

    Raises :class:`InvalidArgumentError` for a name that no backend can have, and when it is built
    with a config that the factory cannot take.
    """

    def make(config: Any) -> Any:
        if _arity(factory):
            return factory(config)
        if config is not None:
            raise InvalidArgumentError(f"The v0.1 factory of backend {name!r} takes no config.")
        return factory()

    return BackendSpec(
        name=name.strip().lower(),
        device_type="unknown",
        priority=0,
        array_framework="torch",
        probe=_unprobeable,
        factory=make,
        automatic=False,
    )


def _unprobeable() -> Probe:
    return Probe.absent(V01_REASON)


def _check_contract(found: Discovered) -> Discovered:
    assert found.spec is not None
    problem = contract_problem(found.spec.contract)
    return found.with_fault(*problem) if problem else found


def _arity(factory: Callable[..., Any]) -> int | None:
    """How many arguments a v0.1 factory is given: 1 (config), 0, or ``None`` when neither fits."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return 1
    for arguments in ((None,), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments)
    return None


def _kind(loaded: object) -> str:
    if isinstance(loaded, type):
        return f"the class {loaded.__module__}.{loaded.__qualname__}"
    return f"an object of type {type(loaded).__name__}"


def _device(device: Any) -> dict[str, Any]:
    data = asdict(device)
    data["dtypes"] = [dtype.value for dtype in device.dtypes]
    return data
