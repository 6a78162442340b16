"""Examining members of the zoo: what they were failed by, and what is wrong with that."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from sagellm_backend.conformance.case import plan
from sagellm_backend.conformance.ledger import CaseResult
from sagellm_backend.conformance.result import STARTUP, Progress
from sagellm_backend.conformance.runner import run
from sagellm_backend.conformance.zoo.member import Member
from sagellm_backend.conformance.zoo.stand_in import stand_in
from sagellm_backend.reference.provider import ReferenceProvider

DEPTH = "standard"


class _EnoughError(Exception):
    """Every name has failed the member."""


@dataclass(frozen=True)
class Examined:
    """One member and the results of its cases."""

    member: Member
    results: tuple[CaseResult, ...]
    seconds: float

    @property
    def failed(self) -> tuple[str, ...]:
        """The ids of the cases that did not pass."""
        return tuple(item.id for item in self.results if not item.passed)

    @property
    def problems(self) -> tuple[str, ...]:
        """What the suite did wrong: a fault that it missed, or a false alarm."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[str]:
        if not self.results:
            yield "no case was run"
        elif self.member.honest:
            for item in self.results:
                if not item.passed:
                    yield f"{item.id} {item.outcome}: {item.detail.splitlines()[0]}"
        elif not self.failed:
            yield "survived: every case passed"
        for name in self.member.kills:
            if self.failed and not _any_named(self.failed, name):
                yield f"was not failed by {name}"


def is_named(case_id: str, name: str) -> bool:
    """Whether ``name`` (a profile, a case function, or an id) means this case."""
    return case_id == name or case_id.startswith((f"{name}.", f"{name}["))


def function_of(case_id: str) -> str:
    """``profile.function`` of a case."""
    return case_id.partition("[")[0]


def examine(member: Member, *, whole: bool = False, seed: int = 0) -> Examined:
    """Examine one member, in processes of its own.

    An honest one must pass every case of its profiles. A broken one is given the cases that it
    names until each name has failed it, or with ``whole`` every case of its profiles. Raises as
    :func:`runner.run`.
    """
    start = time.monotonic()
    everything = member.honest or STARTUP in member.kills or (whole and not member.apart)
    results: list[CaseResult] = []

    def follow(progress: Progress) -> None:
        if progress.last is not None:
            results.append(progress.last)
        failed = [item.id for item in results if not item.passed]
        if not everything and all(_any_named(failed, name) for name in member.kills):
            raise _EnoughError

    try:
        found = run(
            "reference",
            profiles=member.profiles,
            depth=DEPTH,
            seed=seed,
            case_timeout_s=member.limit_s,
            factory=member.factory,
            cases=None if everything else _named(member),
            progress=follow,
            checkpoint=stand_in(),
        )
        results = list(found.cases)
    except _EnoughError:
        pass
    return Examined(member, tuple(results), time.monotonic() - start)


def examine_all(
    members: Iterable[Member],
    *,
    whole: bool = False,
    jobs: int = 2,
    progress: Callable[[Examined], None] | None = None,
) -> list[Examined]:
    """Examine members, ``jobs`` at a time; ``progress`` is called after each. In their order."""
    wanted = list(members)
    found: dict[str, Examined] = {}
    with ThreadPoolExecutor(jobs) as pool:
        # Honest ones take longest: begun first, they do not keep the others waiting at the end.
        longest = sorted(wanted, key=lambda member: not member.honest)
        futures = [pool.submit(examine, member, whole=whole) for member in longest]
        try:
            for future in as_completed(futures):
                done = future.result()
                found[done.member.name] = done
                if progress is not None:
                    progress(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [found[member.name] for member in wanted]


def _named(member: Member) -> list[str]:
    """The ids of the cases that a member names."""
    # One that would do harm here claims what the reference claims.
    build = ReferenceProvider if member.apart else member.build
    with build(None) as provider:
        planned = plan(provider.capability(), member.profiles, DEPTH)
    return [item.id for item in planned.cases if any(is_named(item.id, n) for n in member.kills)]


def _any_named(case_ids: Iterable[str], name: str) -> bool:
    return any(is_named(case, name) for case in case_ids)
