"""The zoo: providers with one planted fault each, and honest ones that merely differ.

It proves the suite. Every broken provider must be failed by the cases that it names, every case
must be failed by a broken provider, and no honest one may be failed by any
(:mod:`~sagellm_backend.conformance.zoo.matrix`). This is mutation testing, of the suite, by its
examinees (DeMillo, Lipton and Sayward, "Hints on Test Data Selection", 1978).
"""

from __future__ import annotations

import difflib
import pkgutil
from importlib import import_module
from typing import Any

from sagellm_backend.conformance.zoo.member import Build, Member, declared
from sagellm_backend.errors import InvalidArgumentError

__all__ = ["Member", "factory", "find", "honest_variants", "members"]

_TOOLS = {
    *("examine", "flawed_attention", "matrix", "member", "mesh", "parts", "stand_in", "toy_group"),
}


def members() -> tuple[Member, ...]:
    """Every broken provider."""
    return tuple(item for item in _all() if not item.honest)


def honest_variants() -> tuple[Member, ...]:
    """Every correct provider that differs from the reference."""
    return tuple(item for item in _all() if item.honest)


def find(name: str) -> Member:
    """The member of this name. Raises :class:`InvalidArgumentError`."""
    _all()
    if name not in declared():
        close = difflib.get_close_matches(name, declared(), n=1)
        raise InvalidArgumentError(
            f"The zoo has no member {name!r}.",
            hint=f"Did you mean {close[0]!r}?" if close else "`conformance zoo` lists all.",
        )
    return declared()[name]


def factory(name: str) -> Build:
    """What makes the provider of this name from a config."""
    return find(name).build


def __getattr__(name: str) -> Any:
    if name.startswith("build_"):
        return factory(name[len("build_") :].replace("_", "-"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _all() -> tuple[Member, ...]:
    for module in sorted(item.name for item in pkgutil.iter_modules(__path__)):
        if module not in _TOOLS:
            import_module(f"{__name__}.{module}")
    return tuple(declared().values())
