"""The kill matrix: which case fails which member of the zoo, and what that says of the suite."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagellm_backend.checks import check_choice, check_int
from sagellm_backend.conformance import zoo
from sagellm_backend.conformance.case import PROFILES, plan
from sagellm_backend.conformance.zoo.examine import DEPTH, Examined, examine_all, function_of
from sagellm_backend.conformance.zoo.member import Member
from sagellm_backend.reference.provider import ReferenceProvider

if TYPE_CHECKING:
    from typing_extensions import Self

_NOT_ASKED_FOR = {"depth", "profile_not_requested"}


@dataclass(frozen=True)
class Matrix:
    """Members by cases.

    ``vacuous`` are the case functions, of the profiles asked for, that no member fails; it is empty
    where single members were chosen.
    """

    examined: tuple[Examined, ...]
    vacuous: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the suite judged every member rightly, and every case can fail."""
        return not self.vacuous and not any(item.problems for item in self.examined)

    @property
    def killers(self) -> dict[str, list[str]]:
        """The members that each case function failed, by function."""
        return _killers(self.examined)

    def to_dict(self) -> dict[str, Any]:
        """The matrix as plain JSON data."""
        return {
            "passed": self.passed,
            "members": [_plain(item) for item in self.examined],
            "cases": self.killers,
            "vacuous": list(self.vacuous),
        }


def chosen(names: Sequence[str] = (), profiles: Sequence[str] = ()) -> tuple[Member, ...]:
    """The members of these names, or of these profiles, or all.

    Raises :class:`InvalidArgumentError` for an unknown name.
    """
    if names:
        return tuple(map(zoo.find, names))
    wanted = {check_choice("--profile", name, PROFILES) for name in profiles or PROFILES}
    every = (*zoo.members(), *zoo.honest_variants())
    return tuple(member for member in every if wanted & {*member.profiles})


def build(
    names: Sequence[str] = (),
    profiles: Sequence[str] = (),
    *,
    whole: bool = False,
    jobs: int = 2,
    progress: Any = None,
) -> Matrix:
    """Examine members, and find what no member fails; see :func:`examine.examine_all`."""
    picked = chosen(names, profiles)
    examined = tuple(examine_all(picked, whole=whole, jobs=jobs, progress=progress))
    vacuous = () if names else tuple(_vacuous(examined, profiles or PROFILES))
    return Matrix(examined, vacuous)


def main(options: argparse.Namespace) -> int:
    """Print the matrix; 0 if the suite stands, 1 if not."""
    check_int("--jobs", options.jobs, high=256)
    total = len(chosen(options.member, options.profile))
    with _Counter(total) as counter:
        found = build(
            options.member,
            options.profile,
            whole=options.whole,
            jobs=options.jobs,
            progress=counter.count,
        )
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    return 0 if found.passed else 1


def _killers(examined: Iterable[Examined]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in examined:
        for name in dict.fromkeys(map(function_of, item.failed)):
            found.setdefault(name, []).append(item.member.name)
    return dict(sorted(found.items()))


def _vacuous(examined: Iterable[Examined], profiles: Sequence[str]) -> list[str]:
    with ReferenceProvider() as provider:
        found = plan(provider.capability(), profiles, DEPTH)
    absent = [
        item.id
        for item in found.not_applicable
        if item.profile in profiles and item.reason not in _NOT_ASKED_FOR
    ]
    known = dict.fromkeys(map(function_of, [*(item.id for item in found.cases), *absent]))
    killed = _killers(examined)
    return [name for name in known if name not in killed]


def _plain(item: Examined) -> dict[str, Any]:
    member = item.member
    return {
        "name": member.name,
        "text": member.text,
        "profiles": list(member.profiles),
        "honest": member.honest,
        "kills": list(member.kills),
        "cases": len(item.results),
        "failed": list(item.failed),
        "problems": list(item.problems),
        "seconds": round(item.seconds, 3),
    }


def _print(found: Matrix) -> None:
    from sagellm_backend.cli.tables import print_table

    rows = [
        (item.member.name, item.member.text, _judgement(item), f"{item.seconds:.1f}")
        for item in found.examined
    ]
    print_table(("member", "fault or difference", "judged by the suite", "s"), rows)
    print_table(
        ("case", "fails", "among them"),
        [
            (name, str(len(killers)), ", ".join(killers[:3]))
            for name, killers in found.killers.items()
        ],
    )
    for item in found.examined:
        for problem in item.problems:
            print(f"{item.member.name}: {problem}")
    for name in found.vacuous:
        print(f"{name}: no member fails it, so nothing shows that it can fail")
    broken = [item for item in found.examined if not item.member.honest]
    caught = sum(bool(item.failed) for item in broken)
    honest = [item for item in found.examined if item.member.honest]
    alarms = sum(bool(item.failed) for item in honest)
    print(
        f"{caught} of {len(broken)} broken providers caught, {alarms} of {len(honest)} honest ones "
        f"accused, {len(found.killers)} case functions fail, {len(found.vacuous)} never."
    )


def _judgement(item: Examined) -> str:
    if item.problems:
        return "WRONG: " + item.problems[0]
    if item.member.honest:
        return f"passes {len(item.results)} cases"
    first = next(result for result in item.results if not result.passed)
    count = len({function_of(name) for name in item.failed})
    more = f" and {count - 1} more" if count > 1 else ""
    return f"{first.outcome} by {function_of(first.id)}{more}"


class _Counter:
    """A line on standard error that counts, where somebody sees it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._seen = sys.stderr.isatty() and "NO_COLOR" not in os.environ

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._seen:
            sys.stderr.write("\r\033[K")

    def count(self, found: Examined) -> None:
        """One more is done."""
        self._done += 1
        if self._seen:
            sys.stderr.write(f"\r\033[K{self._done} of {self._total}: {found.member.name}")
            sys.stderr.flush()
