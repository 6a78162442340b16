"""The arguments of the player: what both of its sides must know."""

from __future__ import annotations

JOINED, ARRIVED, STOPPED, COUNT, TABLE, TEAM_SIZE, GIVE_WAY, WORDS = range(8)
"""Counters of threads that have come in and of arrivals at the end of a launch, and what is not 0 when
a launch has failed: all are 0 before a run. How many launches, and the address of their table;
addresses of C functions without arguments that tell how many threads take part (0: one), and that
let another thread have the processor."""

FUNCTION, ARGUMENT, CHUNKS, SECOND, LAST, SOUND, ALONE, COLUMNS = range(8)
"""The columns of a launch: a kernel and its words; for how many threads it has work; what its second
word is before it runs (a counter as the first, in some); the index of its last word, and what that
is unless it fails; whether the launch behind it need not wait for other threads."""
