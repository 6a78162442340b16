"""The choice of a backend from a discovery report: pure functions, nothing is loaded or built."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from sagellm_backend.discovery import DiscoveryReport
from sagellm_backend.entries import Discovered, EntryState
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

AUTO = "auto"

# Hardware words of this project whose provider speaks another framework than torch; for entries
# that did not load and so cannot say it themselves.
_FRAMEWORKS = {"kunlun": "paddle"}

_BY_USE = (
    EntryState.AVAILABLE,
    EntryState.UNPROBED,
    EntryState.UNSUPPORTED,
    EntryState.BROKEN,
    EntryState.ABSENT,
    EntryState.FAULTED,
    EntryState.NOT_ALLOWED,
    EntryState.IGNORED,
)


@dataclass(frozen=True)
class Selection:
    """The chosen backend, and what was passed over: ``warnings`` aloud, ``notes`` for the log."""

    chosen: Discovered
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def select(
    report: DiscoveryReport, name: str, *, array_framework: str | None, asked: str
) -> Selection:
    """The backend that ``name`` or automatic choice gives; see ``registry.get_provider``.

    ``asked`` is how the name came here, for messages.
    """
    if name == AUTO:
        return select_auto(report, array_framework)
    return Selection(select_named(report, name, asked))


def select_named(report: DiscoveryReport, name: str, asked: str) -> Discovered:
    """The backend of that name or alias.

    Raises :class:`InvalidArgumentError` for an unknown name, :class:`UnavailableError` with the
    reason and the remedy for one that cannot be used.
    """
    matches = [item for item in report.found if name in item.names]
    if not matches:
        _refuse_unknown(report, name, asked)
    best = min(matches, key=lambda item: _BY_USE.index(item.state))
    if best.state in (EntryState.AVAILABLE, EntryState.UNPROBED):
        return best
    origin = f" of {best.origin}" if best.origin else ""
    raise UnavailableError(
        f"Backend {best.name!r}{origin} is {best.state.value}: {best.reason.rstrip('.')}.",
        hint=best.remedy or "`sagellm-backend list` shows what is available.",
    )


def select_auto(report: DiscoveryReport, array_framework: str | None) -> Selection:
    """The available backend of highest priority.

    ``array_framework`` limits the choice, ``None`` does not. Raises :class:`UnavailableError` when
    nothing is available, and when a backend of higher priority is broken: running on less hardware
    than the machine has is a choice for the user.
    """
    fitting = [item for item in report.found if _fits(item, array_framework)]
    best = next((item for item in fitting if _is_candidate(item)), None)
    above = [item for item in fitting if best is None or item.priority > best.priority]
    seen = {sighting.backend for sighting in report.sightings}
    notes = tuple(_other_frameworks(report, array_framework))
    broken = [
        item
        for item in above
        if item.state is EntryState.BROKEN
        or (item.state is EntryState.FAULTED and item.name in seen)
    ]
    if broken:
        _refuse_broken(report, broken[0], best, notes)
    if best is None:
        raise UnavailableError(
            "\n".join(["No backend is available.", report.render(), *notes, ""]),
            hint="pip install sagellm-backend-cpu runs everywhere.",
        )
    return Selection(best, tuple(_warnings(report, above)), notes)


def _is_candidate(item: Discovered) -> bool:
    return item.state is EntryState.AVAILABLE and item.spec is not None and item.spec.automatic


def _fits(item: Discovered, array_framework: str | None) -> bool:
    if item.spec is not None and not item.spec.automatic:
        return False
    return array_framework in (None, _framework(item))


def _framework(item: Discovered) -> str:
    if item.spec is not None:
        return item.spec.array_framework
    return _FRAMEWORKS.get(item.name, "torch")


def _warnings(report: DiscoveryReport, above: list[Discovered]) -> Iterator[str]:
    for item in above:
        if item.state in (EntryState.UNSUPPORTED, EntryState.FAULTED):
            yield f"Backend {item.name!r} is passed over: {item.why}"
    yield from report.hints


def _other_frameworks(report: DiscoveryReport, array_framework: str | None) -> Iterator[str]:
    for item in report.found:
        if _is_candidate(item) and not _fits(item, array_framework):
            yield (
                f"Backend {item.name!r} is available and was passed over: it speaks "
                f"{_framework(item)}, not {array_framework}. Name it, or ask with "
                "array_framework=None."
            )


def _refuse_broken(
    report: DiscoveryReport, broken: Discovered, best: Discovered | None, notes: tuple[str, ...]
) -> NoReturn:
    steps = [broken.remedy] if broken.remedy else []
    if best is not None:
        steps.insert(
            0, f"Set SAGELLM_BACKEND={best.name} to run on {best.name} deliberately, or mend it:"
        )
    fault = f"The hardware of backend {broken.name!r} is there and cannot be used"
    raise UnavailableError(
        "\n".join([f"{fault}: {broken.reason.rstrip('.')}.", report.render(), *notes, ""]),
        hint=" ".join(steps) or None,
    )


def _refuse_unknown(report: DiscoveryReport, name: str, asked: str) -> NoReturn:
    names = [item.name for item in report.found if item.spec is not None]
    every = {alias: item.name for item in report.found for alias in item.names if item.spec}
    close = difflib.get_close_matches(name, every, n=1)
    listed = ", ".join(dict.fromkeys(names)) or "none"
    guess = f"Did you mean {close[0]!r}? " if close else ""
    package = next((s.package for s in report.sightings if s.backend == name), None)
    raise InvalidArgumentError(
        f"{asked} names no backend: known are {listed}.",
        hint=guess
        + (f"pip install {package}" if package else "`sagellm-backend list` shows them."),
    )
