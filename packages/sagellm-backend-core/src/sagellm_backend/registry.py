"""Backends by name: choose one, build it, add one's own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sagellm_backend.discovery import DiscoveryReport, discover
from sagellm_backend.entries import (
    EntryState,
    adapt_v01,
    fresh_entry,
    is_v01_factory,
    probe_entry,
)
from sagellm_backend.errors import BackendError, InvalidArgumentError
from sagellm_backend.selection import AUTO, Selection, select, select_named
from sagellm_backend.spec import ARRAY_FRAMEWORKS, BackendSpec, build, contract_problem

if TYPE_CHECKING:
    from sagellm_backend.base import BackendProvider

CHOICE = "SAGELLM_BACKEND"
"""Environment variable: the backend to take where the program names none."""

_HERE = "this process"
_log = logging.getLogger("sagellm_backend")
_lock = threading.Lock()
_registered: dict[str, BackendSpec] = {}
_said: set[str] = set()


def get_provider(
    name: str | None = None, config: Any = None, *, array_framework: str | None = "torch"
) -> BackendProvider:
    """Build a new provider.

    The backend is ``name``; where that is ``None``, empty or ``"auto"``, what ``SAGELLM_BACKEND``
    says; else the available one of highest priority among those that speak ``array_framework``
    (``None``: any of them). Names and aliases are read without regard to case and outer blanks, and
    a named backend is taken whatever framework it speaks. ``config`` goes to the backend; see
    :class:`~sagellm_backend.config.ProviderConfig`. Only the chosen provider's module is imported.

    Hardware that is there and broken raises instead of giving way to a lesser backend. What is
    passed over for another reason is logged as a warning, once per process. Thread-safe.

    Raises:
        InvalidArgumentError: no backend has this name, or an argument is of the wrong kind.
        UnavailableError: the named backend cannot be used; or none is available, and the message
            holds the discovery report; or the factory failed.
        BackendError: what the factory itself raises.
    """
    choice = choose(name, array_framework=array_framework)
    for warning in choice.warnings:
        _say_once(warning)
    for note in choice.notes:
        _log.info(note)
    assert choice.chosen.spec is not None
    provider = build(choice.chosen.spec, config, choice.chosen.origin)
    _log.info("Backend %s of %s", choice.chosen.name, choice.chosen.origin)
    return provider


def choose(name: str | None = None, *, array_framework: str | None = "torch") -> Selection:
    """What :func:`get_provider` would take, without building it. Raises as it does."""
    if array_framework is not None and array_framework not in ARRAY_FRAMEWORKS:
        raise InvalidArgumentError(
            f"array_framework {array_framework!r} is unknown.",
            hint=f"Known are {', '.join(ARRAY_FRAMEWORKS)}, and None for any.",
        )
    wanted, asked = _wanted(name)
    return select(report(), wanted, array_framework=array_framework, asked=asked)


def report(*, refresh: bool = False) -> DiscoveryReport:
    """The discovery report with the backends registered in this process."""
    with _lock:
        own = list(_registered.values())
    found = discover(refresh=refresh)
    if not own:
        return found
    return found.with_specs(probe_entry(fresh_entry(spec, _HERE)) for spec in own)


def register_provider(spec: BackendSpec | str, factory: Callable[..., Any] | None = None) -> None:
    """Add a backend to this process, by its spec or, as in v0.1, by name and factory.

    A factory (``f(config=None)`` or a provider class) is never chosen automatically. Refused with
    :class:`InvalidArgumentError`, changing nothing: a name or alias that is taken, a factory that
    cannot be called, a spec for another contract.
    """
    if isinstance(spec, BackendSpec):
        if factory is not None:
            raise InvalidArgumentError(f"The spec of backend {spec.name!r} has its own factory.")
        added = spec
    else:
        added = _adapted(spec, factory)
    problem = contract_problem(added.contract)
    if problem:
        raise InvalidArgumentError(f"Backend {added.name!r} is {problem[0]}.", hint=problem[1])
    installed = discover()
    with _lock:
        taken = {name: _HERE for spec in _registered.values() for name in spec.names}
        taken.update({n: item.origin for item in installed.found if item.spec for n in item.names})
        for name in added.names:
            if name in taken:
                raise InvalidArgumentError(
                    f"The backend name {name!r} is taken by {taken[name]}.",
                    hint="Choose another name.",
                )
        _registered[added.name] = added


def list_providers() -> list[str]:
    """The names of all backends known here, available or not, highest priority first."""
    return list(dict.fromkeys(item.name for item in report().found if item.spec))


def is_provider_available(name: str) -> bool:
    """Whether the backend's probe says that it can be used here and now.

    ``False`` for unknown names, and for v0.1 factories, which cannot be probed.
    """
    wanted = _text(name).lower()
    try:
        found = select_named(report(), wanted, repr(name))
    except BackendError:
        return False
    return found.state is EntryState.AVAILABLE


def _wanted(name: str | None) -> tuple[str, str]:
    given = _text(name).lower()
    if given and given != AUTO:
        return given, repr(name)
    variable = os.environ.get(CHOICE, "")
    return variable.strip().lower() or AUTO, f"{CHOICE}={variable}"


def _text(name: object) -> str:
    if name is None:
        return ""
    if not isinstance(name, str):
        raise InvalidArgumentError(
            f"A backend is named by a string, not by {type(name).__name__}.",
            hint="`sagellm-backend list` shows the names.",
        )
    return str.strip(name)


def _adapted(name: object, factory: Callable[..., Any] | None) -> BackendSpec:
    text = _text(name)
    if not is_v01_factory(factory):
        raise InvalidArgumentError(
            f"The factory of backend {text!r} must be a function f(config=None) or a provider "
            f"class, not {factory!r}."
        )
    assert factory is not None
    return adapt_v01(text, factory)


def _say_once(warning: str) -> None:
    with _lock:
        if warning in _said:
            return
        _said.add(warning)
    _log.warning(warning)
