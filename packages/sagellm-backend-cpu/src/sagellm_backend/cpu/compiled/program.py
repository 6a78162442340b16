"""Launches of kernels that are played one after the other, in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from sagellm_backend.cpu.compiled import player_words as w
from sagellm_backend.cpu.compiled import team
from sagellm_backend.cpu.compiled.kernel import Kernel
from sagellm_backend.errors import UnavailableError

_PLAYER = Kernel("player", "bytes")
_LINE = 8  # words in a cache line: counters of one launch and words of another share none


class Launch(NamedTuple):
    """A kernel, its words as they were before it ran, and for how many threads it had work."""

    function: Any
    words: bytes
    chunks: int


class Program:
    """A list of launches, run as often as one likes. Not thread-safe.

    The memory that their words point to must outlive it.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        sizes = [len(launch.words) // 8 for launch in launches]
        rounded = [-(-size // _LINE) * _LINE for size in sizes]
        self._starts = np.concatenate(([0], np.cumsum(rounded)))
        memory = np.zeros(self._starts[-1] + _LINE, np.int64)
        skipped = -memory.ctypes.data % (8 * _LINE) // 8
        self._memory = memory[skipped : skipped + self._starts[-1]]
        for start, launch in zip(self._starts, launches, strict=False):
            words = np.frombuffer(launch.words, np.int64)
            self._memory[start : start + len(words)] = words
        self._functions = [launch.function for launch in launches]
        self._player = _PLAYER.function()
        if self._player is None:
            raise UnavailableError(
                "The player of recorded kernels cannot be had here, though the kernels can.",
                hint="The log has the reason; without graphs everything works.",
            )
        self._threads = torch.get_num_threads()
        self._last = np.asarray(sizes) - 1
        self._table = np.zeros((len(launches), w.COLUMNS), np.int64)
        self._table[:, w.FUNCTION] = [_address(function) for function in self._functions]
        self._table[:, w.ARGUMENT] = self._memory.ctypes.data + 8 * self._starts[:-1]
        self._table[:, w.SECOND] = self._memory[self._starts[:-1] + 1]
        self._table[:, w.LAST] = self._last
        self._chunks = self._table[:, w.CHUNKS]
        self._chunks[:] = [launch.chunks for launch in launches]
        self._settle()
        self._words = (ctypes.c_int64 * w.WORDS)()
        self._words[w.COUNT], self._words[w.TABLE] = len(launches), self._table.ctypes.data
        self._words[w.TEAM_SIZE], self._words[w.GIVE_WAY] = _team_size(), _give_way()

    def change(self, launches: Sequence[int], words: Mapping[int, int], chunks: int) -> None:
        """Give some launches other words, by their index, and another number of chunks."""
        starts = self._starts[launches]
        for index, word in words.items():
            self._memory[starts + index] = word
        self._chunks[launches] = chunks
        self._settle()

    def run(self) -> str | None:
        """Play all launches; the name of the kernel that found its arguments at fault, if one did.

        Then none is run after it.
        """
        self._words[w.JOINED] = self._words[w.ARRIVED] = self._words[w.STOPPED] = 0
        team.run(self._player, self._words, min(self._threads, int(self._chunks.max())))
        return self._failed() if self._words[w.STOPPED] else None

    def _failed(self) -> str:
        last, sound = self._starts[:-1] + self._last, self._table[:, w.SOUND]
        number = np.flatnonzero(self._memory[last] != sound)[0]
        self._memory[last] = sound
        return str(self._functions[number].name)

    def _settle(self) -> None:
        """Put into the table what depends on words and chunks."""
        self._table[:, w.SOUND] = self._memory[self._starts[:-1] + self._last]
        single = self._chunks == 1
        self._table[:-1, w.ALONE] = single[:-1] & single[1:]


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _team_size() -> int:
    entry = team.entry("omp_get_num_threads")
    return 0 if entry is None else _address(entry)


@cache
def _give_way() -> int:
    return _address(ctypes.CDLL(None).sched_yield)
