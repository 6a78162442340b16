"""The ledger: what happened to every case, as the parent saw it, and what follows from that."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagellm_backend.conformance.case import Case
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.exam import case_seed

OUTCOMES = (
    "passed",
    "failed",
    "error",
    "crashed",
    "timeout",
    "illegal_skip",
    "incomplete",
    "missing",
)
"""All that a case can come to; only the first is good."""

OUTPUT_LIMIT = 1 << 20
"""Bytes that a case may print."""

_SAID_BY_CHILD = frozenset({"passed", "failed", "error", "illegal_skip"})


@dataclass(frozen=True)
class CaseResult:
    """What one case came to.

    ``detail`` says why it did not pass, the sentence first and places and output behind it.
    ``ranks`` has the outcome of every process of a case of several, else ``None``. ``seconds`` and
    ``metrics`` are those of the first rank.
    """

    id: str
    profile: str
    outcome: str
    seconds: float
    seed: int
    metrics: Mapping[str, float]
    detail: str
    ranks: tuple[str, ...] | None = None

    @property
    def passed(self) -> bool:
        """Whether every process returned, and cleanly."""
        return self.outcome == "passed"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {
            **vars(self),
            "metrics": dict(self.metrics),
            "ranks": None if self.ranks is None else list(self.ranks),
        }


class Ledger:
    """Records in the order of events, each on disk before the next one is made.

    A record has ``event``, ``id`` and ``rank``. Events: ``start`` with ``nth``, the number of cases
    that the process had run before, and ``after``, the last of them; ``end`` with the child's
    ``outcome``, ``detail``, ``seconds``, ``metrics``, and ``output`` and ``output_bytes``; ``died``
    with ``returncode``, ``stacks`` and output; ``timeout`` with ``stacks`` and output; ``killed``
    for ranks that were ended because of another's fate; ``lost`` for cases for which no child could
    be started.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self._path = path
        if path is not None:
            self._write("w", "")

    def add(self, event: str, case_id: str, rank: int, **content: Any) -> dict[str, Any]:
        """Enter a record. Raises :class:`HarnessError` if it cannot be written down."""
        record = {"event": event, "id": case_id, "rank": rank, **content}
        self.records.append(record)
        self._write("a", json.dumps(record) + "\n")
        return record

    def _write(self, mode: str, text: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise HarnessError(
                f"Cannot write the ledger {self._path}: {error.strerror}.",
                hint="Choose another folder with --out.",
            ) from error


def judge(
    cases: Iterable[Case], records: Iterable[Mapping[str, Any]], root_seed: int
) -> list[CaseResult]:
    """What every planned case came to, from the records alone; all others are ignored."""
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_id.setdefault(record["id"], []).append(record)
    return [judge_case(case, by_id.get(case.id, []), root_seed) for case in cases]


def judge_case(case: Case, records: Sequence[Mapping[str, Any]], root_seed: int = 0) -> CaseResult:
    """What one case came to. It passed only if every one of its processes said so at the end.

    If several ranks did not, the first in time stands for the case; ranks that were killed for it
    count as incomplete.
    """
    ranks = [
        _judge_rank([record for record in records if record["rank"] == rank])
        for rank in range(case.world)
    ]
    outcome, detail = _first_bad(ranks, records)
    if outcome != "passed":
        detail += _circumstances(records)
    first = next((record for record in records if record["rank"] == 0 and "seconds" in record), {})
    return CaseResult(
        id=case.id,
        profile=case.profile,
        outcome=outcome,
        seconds=first.get("seconds", 0.0),
        seed=case_seed(root_seed, case.id),
        metrics=first.get("metrics", {}),
        detail=detail,
        ranks=tuple(word for word, _ in ranks) if case.world > 1 else None,
    )


def _circumstances(records: Sequence[Mapping[str, Any]]) -> str:
    """What a replay of this case alone would not do again."""
    start = next((record for record in records if record["event"] == "start"), {})
    last = "".join(start.get("after", ()))
    return f"\n  in a process that had run {start['nth']} cases, {last} the last" if last else ""


def _first_bad(
    ranks: Sequence[tuple[str, str]], records: Sequence[Mapping[str, Any]]
) -> tuple[str, str]:
    bad = [rank for rank, (outcome, _) in enumerate(ranks) if outcome != "passed"]
    if not bad:
        return ranks[0]
    killed = {record["rank"] for record in records if record["event"] == "killed"}
    order = [record["rank"] for record in records if record["event"] not in {"start", "killed"}]
    culprits = [rank for rank in order if rank in bad and rank not in killed]
    culprit = culprits[0] if culprits else bad[0]
    outcome, detail = ranks[culprit]
    return outcome, detail if len(ranks) == 1 else f"rank {culprit}: {detail}"


def _judge_rank(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    found = {record["event"]: record for record in records}
    if "lost" in found:
        return "missing", found["lost"]["detail"]
    if "start" not in found:
        return "missing", "it was never started"
    if "timeout" in found:
        last = found["timeout"]
        text = f"no end within {last['limit_s']:g} s\n{last['stacks']}"
        return "timeout", _with_output(text, last)
    if "died" in found:
        return _judge_death(found["died"])
    if "end" in found:
        return _judge_end(found["end"])
    return "incomplete", found.get("killed", {}).get("detail", "it never ended")


def _judge_death(last: Mapping[str, Any]) -> tuple[str, str]:
    code = last["returncode"]
    if code == 0:
        return "incomplete", _with_output("the process exited with 0 inside the case", last)
    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    return "crashed", _with_output(f"the process {how} inside the case\n{last['stacks']}", last)


def _judge_end(last: Mapping[str, Any]) -> tuple[str, str]:
    outcome, detail = last["outcome"], last["detail"]
    if outcome not in _SAID_BY_CHILD:
        return "error", f"the process gave an outcome that there is not: {outcome!r}"
    if outcome == "passed" and last["output_bytes"] > OUTPUT_LIMIT:
        detail = f"it printed {last['output_bytes']:,} bytes; {OUTPUT_LIMIT:,} are allowed"
        return "failed", _with_output(detail, {**last, "output": last["output"][:400]})
    return outcome, detail if outcome == "passed" else _with_output(detail, last)


def _with_output(text: str, record: Mapping[str, Any]) -> str:
    output = record["output"].strip()
    return f"{text.strip()}\noutput:\n{output}" if output else text.strip()
