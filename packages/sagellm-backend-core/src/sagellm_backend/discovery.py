"""Which backends this environment has: entry points, probes, and what stands in their way."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

from sagellm_backend.devices import Sighting, seen_accelerators
from sagellm_backend.entries import Discovered, EntryState, load_entry, probe_entry
from sagellm_backend.errors import UnavailableError

GROUP = "sagellm.backends"
"""The entry-point group that backends register in."""

ALLOW = "SAGELLM_BACKENDS_ALLOW"
"""Environment variable: the entry names that may load, separated by commas."""

WATCHED_VARIABLES = (
    ALLOW,
    "ASCEND_HOME_PATH",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_TOOLKIT_HOME",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "XPU_VISIBLE_DEVICES",
)
"""Variables that change what discovery finds: another value makes it look again."""

_CORE = "sagellm-backend-core"
_FOREIGN = "isagellm-backend"
# The engine registers its plugin class as `cpu` here; loading it would import the whole engine.
_ENGINE = "isagellm-core"
_OURS = "sagellm_backend/__init__.py"


@dataclass(frozen=True)
class DiscoveryReport:
    """Everything that discovery found, available or not, highest priority first."""

    found: tuple[Discovered, ...]
    hints: tuple[str, ...] = ()
    sightings: tuple[Sighting, ...] = ()

    def render(self) -> str:
        """The report as a short plain-text table: one line for each entry, then the hints."""
        rows = [(item.name, item.state.value, item.origin, item.summary) for item in self.found]
        rows = rows or [("(none)", "", "", f"no distribution registers in {GROUP!r}")]
        name, state, origin = (max(len(row[column]) for row in rows) for column in range(3))
        lines = [f"{a:{name}}  {b:{state}}  {c:{origin}}  {d}".rstrip() for a, b, c, d in rows]
        return "\n".join([f"  {line}" for line in lines] + [f"  ! {hint}" for hint in self.hints])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "backends": [item.to_dict() for item in self.found],
            "hints": list(self.hints),
            "sightings": [
                {**asdict(sighting), "package": sighting.package} for sighting in self.sightings
            ],
        }

    def with_specs(self, specs: Iterable[Discovered]) -> DiscoveryReport:
        """The report with more backends in it."""
        return replace(self, found=_ranked([*self.found, *specs]))


def discover(*, refresh: bool = False) -> DiscoveryReport:
    """Look for backends: load the entry points, probe each backend, note what hinders.

    The answer is kept until ``sys.path`` or one of :data:`WATCHED_VARIABLES` changes, or
    ``refresh`` asks to look again. No framework is imported and no driver started, except by
    packages that do so themselves when loaded. Nothing that a package raises is lost or gets out:
    it is the ``reason`` of its entry. Thread-safe. Raises :class:`UnavailableError` only when an
    entry calls back into discovery while it is being loaded or probed.
    """
    key = _cache_key()
    with _lock:
        if not refresh and key in _cache:
            return _cache[key]
    # Packages are imported outside the lock: holding it across imports could deadlock.
    if getattr(_running, "now", False):
        raise UnavailableError(
            "Discovery was called while it was loading or probing an entry point.",
            hint="A backend's package must not look for backends when it is imported or probed.",
        )
    _running.now = True
    try:
        report = _look()
    finally:
        _running.now = False
    with _lock:
        if not refresh and key in _cache:
            return _cache[key]
        _cache.clear()
        _cache[key] = report
    return report


_cache: dict[tuple[object, ...], DiscoveryReport] = {}
_lock = threading.Lock()
_running = threading.local()


def _cache_key() -> tuple[object, ...]:
    return (tuple(sys.path), *(os.environ.get(name) for name in WATCHED_VARIABLES))


def _look() -> DiscoveryReport:
    sightings = seen_accelerators()
    allowed = _allowed()
    foreign = tuple(_foreign_owners())
    loaded = [_read(entry, allowed, foreign) for entry in metadata.entry_points(group=GROUP)]
    found = _ranked(probe_entry(item) for item in fault_clashes(_unique(loaded)))
    hints = (
        *(_foreign_hint(name) for name in foreign),
        *_allow_hints(allowed, found),
        *_package_hints(sightings, found),
    )
    return DiscoveryReport(found, hints, sightings)


def _read(
    entry: metadata.EntryPoint, allowed: frozenset[str] | None, foreign: tuple[str, ...]
) -> Discovered:
    distribution = entry.dist.metadata["Name"] if entry.dist else "an unknown distribution"
    version = entry.dist.version if entry.dist else ""
    unread = Discovered(entry.name, distribution, version, EntryState.IGNORED)
    if allowed is not None and entry.name.strip().lower() not in allowed:
        return replace(
            unread,
            state=EntryState.NOT_ALLOWED,
            reason=f"{ALLOW} does not list it",
            remedy=f"Add {entry.name} to {ALLOW}.",
        )
    if _normal(distribution) == _ENGINE:
        return replace(unread, reason="the engine's own plugin, not a backend")
    if _normal(distribution) in foreign:
        return replace(unread, reason="its files and ours overwrite one another; not loaded")
    return load_entry(entry, distribution, version)


def fault_clashes(found: Iterable[Discovered]) -> list[Discovered]:
    """The entries, with every usable one faulted whose name or alias another one has too."""
    entries = list(found)
    usable = [item for item in entries if item.state is EntryState.UNPROBED]
    return [_fault_if_clashing(item, usable) for item in entries]


def _fault_if_clashing(item: Discovered, usable: list[Discovered]) -> Discovered:
    if item.state is not EntryState.UNPROBED:
        return item
    for other in usable:
        shared = sorted(set(item.names) & set(other.names))
        if other is not item and shared:
            return item.with_fault(
                f"the name {shared[0]!r} is taken twice: by entry {item.entry!r} of {item.origin} "
                f"and by entry {other.entry!r} of {other.origin}",
                "Uninstall one of the two.",
            )
    return item


def _unique(found: Iterable[Discovered]) -> list[Discovered]:
    """One of each: metadata seen twice on sys.path, or one spec under two entries, is one."""
    kept: dict[object, Discovered] = {}
    for item in found:
        key = (_normal(item.distribution), item.spec.name if item.spec else item.entry)
        first = kept.setdefault(key, item)
        if first is not item and item.spec is not first.spec:
            kept[key, item.entry] = item
    return list(kept.values())


def _ranked(found: Iterable[Discovered]) -> tuple[Discovered, ...]:
    return tuple(sorted(found, key=lambda item: (-item.priority, item.name, item.distribution)))


def _allowed() -> frozenset[str] | None:
    names = os.environ.get(ALLOW, "").split(",")
    return frozenset(name.strip().lower() for name in names if name.strip()) or None


def _allow_hints(allowed: frozenset[str] | None, found: tuple[Discovered, ...]) -> Iterator[str]:
    known = {item.entry.strip().lower() for item in found}
    for name in sorted((allowed or frozenset()) - known):
        yield f"{ALLOW} lists {name!r}, and no installed package has such an entry."


def _foreign_owners() -> Iterator[str]:
    """Distributions other than core that install ``sagellm_backend/__init__.py``."""
    candidates = {_FOREIGN}
    for entry in metadata.entry_points(group=GROUP):
        if entry.dist:
            candidates.add(_normal(entry.dist.metadata["Name"]))
    for name in sorted(candidates):
        try:
            record = metadata.distribution(name).read_text("RECORD") or ""
        except metadata.PackageNotFoundError:
            continue
        owns = any(line.startswith(f"{_OURS},") for line in record.splitlines())
        if name != _CORE and (owns or name == _FOREIGN):
            yield name


def _foreign_hint(name: str) -> str:
    return (
        f"{name} installs a sagellm_backend/ of its own over ours: pip uninstall {name}, then "
        f"pip install --force-reinstall --no-deps {_CORE}."
    )


def _package_hints(sightings: tuple[Sighting, ...], found: tuple[Discovered, ...]) -> Iterator[str]:
    served = {item.name for item in found if item.state is not EntryState.IGNORED}
    for sighting in sightings:
        if sighting.backend not in served:
            yield (
                f"{sighting.evidence} shows hardware for {sighting.backend!r} without its package: "
                f"pip install {sighting.package}"
            )


def _normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-").replace(".", "-")
