"""Block ids from several threads at once."""

from __future__ import annotations

import threading

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.pages import layout_for

THREADS, TURNS, COUNT = 4, 50, 3


@case("kv", requires=(Feature.KV_POOL,))
def threads_get_blocks_of_their_own(exam: Exam) -> None:
    """Threads that allocate and free at once never hold the same block, and none is lost.

    Kills: a free list that two threads take from at once, and counts that lose an update.
    """
    pool = exam.provider.kv_pool(layout_for(exam.capability), THREADS * COUNT)
    held: list[set[int]] = [set() for _ in range(THREADS)]
    troubles: list[str] = []
    turn = threading.Barrier(THREADS)

    def work(number: int) -> None:
        try:
            for _ in range(TURNS):
                turn.wait(10)
                ids = pool.alloc(COUNT)
                held[number] = set(ids.tolist())
                turn.wait(10)
                others = set().union(*(held[rank] for rank in range(THREADS) if rank != number))
                if held[number] & others:
                    troubles.append(f"blocks {held[number] & others} are held twice")
                turn.wait(10)
                pool.free(ids)
        except Exception as error:  # noqa: BLE001 - said below, and the others are let go
            troubles.append(f"{type(error).__name__}: {error}")
            turn.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    causes = [text for text in troubles if "BrokenBarrier" not in text]
    exam.check(not troubles, f"{(causes or troubles)[:1]}")
    exam.check(pool.num_free == pool.num_blocks, f"{pool.num_free} blocks are free at the end.")
