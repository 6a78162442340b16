"""Streams as threads: each does its tasks in order, and the host goes on meanwhile.

A failed task harms no other. Its error is kept and raised once: at the next wait for that task, or
for a later one of its stream.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from queue import SimpleQueue

from sagellm_backend.errors import BackendError, UnavailableError
from sagellm_backend.reference.memory import Storage
from sagellm_backend.spec import describe
from sagellm_backend.streams import Event, Stream

_log = logging.getLogger(__name__)


def _nothing() -> None:
    """The work of a task that only marks a point."""


class Task:
    """One piece of a stream's work. ``error`` is set when it failed, ``finished_at`` when done."""

    def __init__(self, worker: Worker, number: int, work: Callable[[], object]) -> None:
        self.worker = worker
        self.number = number
        self.error: BackendError | None = None
        self.finished_at = 0.0
        self._work = work
        self._done = threading.Event()

    def done(self) -> bool:
        """Whether it has ended, well or badly; never waits."""
        return self._done.is_set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, of which no failure is raised; false if the time ran out."""
        return self._done.wait(timeout_s)

    def run(self) -> None:
        """Do the work, on the thread of the stream, and keep its error."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised by the host when it waits
            self.error = _as_backend_error(error)
        # Arrays that the work held are released before anybody who waits can go on.
        self._work = _nothing
        self.finished_at = time.perf_counter()

    def finish(self) -> None:
        """Let those who wait go on."""
        self._done.set()


class Worker:
    """The thread of one stream. It starts with the first task."""

    def __init__(self, name: str, group: Workers) -> None:
        self.last: Task | None = None
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._group = group
        self._numbers = itertools.count()
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._failed: list[Task] = []

    def submit(self, work: Callable[[], object]) -> Task:
        """Queue ``work``. Raises :class:`UnavailableError` when the provider is closed."""
        with self._group.lock:
            if self._group.closed:
                raise UnavailableError("The provider of this stream is closed.")
            task = Task(self, next(self._numbers), work)
            if self.last is None:
                self.thread.start()
                self._group.members.add(self)
            self.last = task
            self._queue.put(task)
        return task

    def finish(self) -> None:
        """End the thread after the work given so far. Takes no lock: garbage collection calls it."""
        self._queue.put(None)

    def take_failures(self, until: Task) -> list[Task]:
        """The tasks up to ``until`` that failed and were not taken before."""
        with self._group.lock:
            taken = [task for task in self._failed if task.number <= until.number]
            self._failed = [task for task in self._failed if task.number > until.number]
        return taken

    def forget_failure(self, task: Task) -> None:
        """Note that the failure of ``task`` was raised elsewhere."""
        with self._group.lock:
            self._failed = [other for other in self._failed if other is not task]

    def _serve(self) -> None:
        while (task := self._queue.get()) is not None:
            task.run()
            if task.error is not None:
                with self._group.lock:
                    self._failed.append(task)
            task.finish()
        with self._group.lock:
            if not self._failed:
                self._group.members.discard(self)


class Workers:
    """The running threads of one provider.

    The thread of a collected stream is a member until its work is done and its failures are raised.
    ``lock`` guards this object and all members.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.closed = False
        self.members: set[Worker] = set()

    def synchronize(self) -> None:
        """Wait for the work of all; raises a failure that was not raised yet."""
        with self.lock:
            workers = list(self.members)
        try:
            settle(worker.last for worker in workers)
        finally:
            with self.lock:
                self.members -= {worker for worker in workers if not worker.thread.is_alive()}

    def close(self) -> None:
        """Take no more work, do what was given, and end all threads."""
        with self.lock:
            self.closed = True
            workers = list(self.members)
        for worker in workers:
            worker.finish()
        for worker in workers:
            worker.thread.join()


def settle(tasks: Iterable[Task | None]) -> None:
    """Wait for tasks, and with each for what its stream does before it.

    Raises the first failure among all that work, once; further ones are logged.
    """
    failed: list[Task] = []
    for task in tasks:
        if task is not None:
            task.join()
            failed += task.worker.take_failures(task)
    for further in failed[1:]:
        _log.error("Work of %s failed too: %s", further.worker.thread.name, further.error)
    if failed and failed[0].error is not None:
        raise failed[0].error


class ReferenceStream(Stream):
    """A stream of one device. Work given to it is done although the stream object dies."""

    def __init__(self, owner: object, device: str, workers: Workers, priority: int = 0) -> None:
        super().__init__(owner, priority)
        self.device = device
        self._worker = Worker(f"stream of {device}", workers)
        weakref.finalize(self, self._worker.finish).atexit = False

    def submit(self, work: Callable[[], object], writes: Iterable[Storage] = ()) -> Task:
        """Queue ``work``, which writes to the storages named, and return at once."""
        task = self._worker.submit(work)
        for storage in writes:
            storage.writer = task
        return task

    def mark(self) -> Task:
        """A task that is done when all work given so far is."""
        return self.submit(_nothing)

    def synchronize(self) -> None:
        settle([self._worker.last])

    def query(self) -> bool:
        last = self._worker.last
        return last is None or last.done()

    def _record(self, event: ReferenceEvent) -> None:
        event.marker = self.mark()

    def _wait(self, event: ReferenceEvent) -> None:
        if event.marker is not None:
            self.submit(event.marker.join)


class ReferenceEvent(Event):
    """A marker in a stream's queue. It can wait only for what was queued before: never a cycle."""

    marker: Task | None = None

    def query(self) -> bool:
        return self.marker is None or self.marker.done()

    def synchronize(self) -> None:
        settle([self.marker])

    def _elapsed_ms(self, start: ReferenceEvent) -> float:
        assert self.marker is not None
        assert start.marker is not None
        self.marker.join()
        start.marker.join()
        return 1e3 * (self.marker.finished_at - start.marker.finished_at)


def _as_backend_error(error: BaseException) -> BackendError:
    if isinstance(error, BackendError):
        return error
    wrapped = UnavailableError(f"Work of a stream failed: {describe(error)}.")
    wrapped.__cause__ = error
    return wrapped
