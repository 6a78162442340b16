"""Bandwidth of host memory: libc's own loops on as many threads as the process has processors."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable

import numpy as np

SIZES = (8 << 20, 64 << 20, 512 << 20)
"""Bytes in all that are read, written or copied in one pass: near caches, far ones, memory."""

_ATTEMPTS, _PASS_S = 7, 0.02


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class HostMemory:
    """Two areas of ``nbytes``, shared out over the threads; rates in bytes per second, best of many.

    A read is ``memchr`` for a byte that is not there, a write ``memset``, a copy ``memcpy``, whose
    bytes are counted once. ctypes lets go of the interpreter's lock for all of them.
    """

    def __init__(self, nbytes: int, threads: int | None = None) -> None:
        self.threads = threads or processors()
        self._part = nbytes // self.threads
        self.nbytes = self._part * self.threads
        self._source = np.ones(self.nbytes, np.uint8)
        self._target = np.ones(self.nbytes, np.uint8)
        libc = ctypes.CDLL(None)
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        self._memchr, self._memset, self._memcpy = libc.memchr, libc.memset, libc.memcpy
        self._memchr.argtypes = (pointer, ctypes.c_int, size)
        self._memset.argtypes = (pointer, ctypes.c_int, size)
        self._memcpy.argtypes = (pointer, pointer, size)
        for function in (self._memchr, self._memset, self._memcpy):
            function.restype = pointer

    def read(self) -> float:
        """Bytes read per second."""
        return self._rate(lambda source, _, size: self._memchr(source, 0, size))

    def write(self) -> float:
        """Bytes written per second."""
        return self._rate(lambda _, target, size: self._memset(target, 1, size))

    def copy(self) -> float:
        """Bytes copied per second."""
        return self._rate(lambda source, target, size: self._memcpy(target, source, size))

    def _rate(self, work: Callable[[int, int, int], object]) -> float:
        passes = 1
        while (spent := self._seconds(work, passes)) < _PASS_S:
            passes = 2 * max(passes, int(passes * _PASS_S / max(spent, 1e-6) / 2))
        best = min(self._seconds(work, passes) for _ in range(_ATTEMPTS))
        return self.nbytes * passes / best

    def _seconds(self, work: Callable[[int, int, int], object], passes: int) -> float:
        """Wall time of so many passes on all threads, from the first start to the last end."""
        begin = threading.Barrier(self.threads)
        clock, times = time.perf_counter, [(0.0, 0.0)] * self.threads

        def run(index: int) -> None:
            source = self._source.ctypes.data + index * self._part
            target = self._target.ctypes.data + index * self._part
            _keep_to(index)
            begin.wait()
            began = clock()
            for _ in range(passes):
                work(source, target, self._part)
            times[index] = began, clock()

        threads = [threading.Thread(target=run, args=(index,)) for index in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return max(end for _, end in times) - min(began for began, _ in times)


def _keep_to(index: int) -> None:
    """Give this thread a processor: one that waits for Python's lock is woken beside its waker."""
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[index % len(usable)]})
