"""Cases of two processes."""

import os
import time
from pathlib import Path

from sagellm_backend.conformance.case import case


def meet(exam):
    """Wait until every rank is there."""
    place = exam.init_method.removeprefix("file://")
    Path(f"{place}.{exam.rank}").touch()
    deadline = time.monotonic() + 20
    while not all(Path(f"{place}.{rank}").exists() for rank in range(exam.world)):
        exam.check(time.monotonic() < deadline, "the other rank does not come")
        time.sleep(0.01)


@case("collective", world=2)
def meets(exam):
    """Both ranks are there, with the same numbers and devices of their own."""
    meet(exam)
    exam.check(exam.provider.device == f"reference:{exam.rank}", exam.provider.device)
    exam.measure("draw", exam.rng.random())


@case("collective", world=2)
def one_rank_dies(exam):
    """Rank 1 ends, and rank 0 waits for it."""
    meet(exam)
    if exam.rank == 1:
        os._exit(3)
    time.sleep(1000)


@case("collective", world=2)
def one_rank_leaves_with_0(exam):
    """Rank 0 ends without a word, and rank 1 waits for it."""
    if exam.rank == 0:
        os._exit(0)
    time.sleep(1000)


@case("collective", world=2)
def one_rank_fails(exam):
    """Rank 1 fails, and rank 0 waits for it."""
    exam.check(exam.rank == 0, "rank 1 is wrong")
    time.sleep(1000)


@case("collective", world=2)
def dies_as_agreed(exam):
    """Rank 1 dies for the case, and rank 0 lives on."""
    meet(exam)
    if exam.rank == 1:
        exam.die()
    time.sleep(0.2)


@case("collective", world=2)
def both_hang(exam):
    """Nobody ends."""
    time.sleep(1000)


@case("collective")
def alone(exam):
    """One process cannot leave its case."""
    exam.die()
