"""Cases of several processes: all must report, and a dead one takes the others with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagellm_backend.conformance import world
from sagellm_backend.conformance.runner import run

PLANTED = Path(__file__).parent / "planted"


@pytest.fixture(scope="module")
def by_name():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLANTED))
        patch.setattr(world, "GRACE_S", 0.3)
        patch.setenv("RANK", "7")
        result = run(
            "reference", modules=["planted_world"], paths=[str(PLANTED)], case_timeout_s=3.0
        )
    return {item.id.partition(".")[2]: item for item in result.cases}


@pytest.mark.parametrize(
    ("name", "outcome", "ranks", "words"),
    [
        ("meets", "passed", ("passed", "passed"), ""),
        (
            "one_rank_dies",
            "crashed",
            ("incomplete", "crashed"),
            "rank 1: the process exited with 3",
        ),
        (
            "one_rank_leaves_with_0",
            "incomplete",
            ("incomplete", "incomplete"),
            "rank 0: the process",
        ),
        ("one_rank_fails", "failed", ("incomplete", "failed"), "rank 1: rank 1 is wrong"),
        ("dies_as_agreed", "passed", ("passed", "passed"), ""),
        ("both_hang", "timeout", ("timeout", "timeout"), "within 3 s"),
        ("alone", "failed", None, "one process"),
    ],
)
def test_outcome(by_name, name, outcome, ranks, words):
    found = by_name[name]
    assert (found.outcome, found.ranks) == (outcome, ranks), found.detail
    assert words in found.detail


def test_those_that_wait_for_the_dead_do_not_wait_for_the_limit(by_name):
    assert by_name["one_rank_dies"].metrics == {}
    assert by_name["both_hang"].seconds >= 3.0
