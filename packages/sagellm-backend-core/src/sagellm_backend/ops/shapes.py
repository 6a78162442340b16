"""Shape specs: how the sizes of one call's arrays hang together.

A spec lists sizes, parted by blanks: a name (``d``), a number (``2``) or a multiple of a name
(``2*d``). ``...`` in front stands for any number of leading sizes. A name, and ``...``, mean the
same in every array of a call; the empty spec is a scalar. A size is at least 1, except that rows
may be none: ``...``, and the names in :data:`ROWS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sagellm_backend.errors import InvalidArgumentError

ROWS = frozenset({"b", "m", "t"})
"""Names that count rows, tokens or sequences, of which there may be none."""

ELLIPSIS = "..."

Bindings = dict[str, Any]
"""What the names mean in one call: the size of each name, and a tuple of sizes for ``...``."""


def match(operation: str, specs: Mapping[str, str], arrays: Mapping[str, Any]) -> Bindings:
    """Fit each array (anything with ``.shape``) to the spec of its name.

    Reads no data. Raises :class:`InvalidArgumentError` with operation, argument, spec, shape and
    the binding that does not fit.
    """
    found: Bindings = {}
    owner: dict[str, str] = {}
    for argument, spec in specs.items():
        shape = tuple(int(size) for size in arrays[argument].shape)
        problem = _bind(spec, shape, argument, found, owner)
        if problem:
            raise InvalidArgumentError(
                f"{operation}: {argument} has shape {shape}, wanted ({spec}): {problem}."
            )
    return found


def infer(spec: str, bindings: Bindings) -> tuple[int, ...]:
    """The shape that ``spec`` stands for under ``bindings``; KeyError for an unbound name."""
    group, sizes = _parse(spec)
    lead: tuple[int, ...] = bindings[ELLIPSIS] if group else ()
    return lead + tuple(factor * (bindings[name] if name else 1) for factor, name in sizes)


@cache
def _parse(spec: str) -> tuple[bool, tuple[tuple[int, str], ...]]:
    """Whether the spec begins with ``...``, and (factor, name) per size; a number has no name."""
    words = spec.split()
    group = bool(words) and words[0] == ELLIPSIS
    return group, tuple(_parse_size(spec, word) for word in words[group:])


def _parse_size(spec: str, word: str) -> tuple[int, str]:
    factor, star, name = word.rpartition("*")
    if word.isdecimal():
        return int(word), ""
    if name.isidentifier() and (factor.isdecimal() if star else True):
        return int(factor or 1), name
    raise ValueError(f"{word!r} is no size in shape spec {spec!r}")


def _bind(
    spec: str, shape: tuple[int, ...], argument: str, found: Bindings, owner: dict[str, str]
) -> str | None:
    group, sizes = _parse(spec)
    lead = len(shape) - len(sizes)
    if lead < 0 or (lead and not group):
        least = "at least " if group else ""
        return f"{least}{len(sizes)} sizes are needed, it has {len(shape)}"
    if group:
        known = found.setdefault(ELLIPSIS, shape[:lead])
        if known != shape[:lead]:
            return f"... is {shape[:lead]} here and {known} in {owner[ELLIPSIS]}"
        owner.setdefault(ELLIPSIS, argument)
    for size, (factor, name) in zip(shape[lead:], sizes, strict=True):
        problem = _bind_size(size, factor, name, argument, found, owner)
        if problem:
            return problem
    return None


def _bind_size(
    size: int, factor: int, name: str, argument: str, found: Bindings, owner: dict[str, str]
) -> str | None:
    if not name:
        return None if size == factor else f"a size is {size} and must be {factor}"
    if size % factor:
        return f"{size} is no multiple of {factor}"
    value = size // factor
    if value == 0 and name not in ROWS:
        return f"{name} is 0 and must be at least 1"
    known = found.setdefault(name, value)
    if known != value:
        return f"{name} is {value} here and {known} in {owner[name]}"
    owner.setdefault(name, argument)
    return None
