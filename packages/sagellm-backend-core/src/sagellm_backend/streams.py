"""Streams and events: the order of work on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sagellm_backend.checks import check_type
from sagellm_backend.errors import InvalidArgumentError

if TYPE_CHECKING:
    from typing_extensions import Self

_entered: ContextVar[tuple[Stream, ...]] = ContextVar("entered_streams", default=())


class Event(ABC):
    """A point in a stream's work. Made by ``provider.create_event()``; used by any thread.

    ``owner`` is the provider that made it; streams of others refuse it.
    """

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.recorded = False

    @abstractmethod
    def query(self) -> bool:
        """Whether all work before the point is done; an event never recorded is done."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until :meth:`query` would be true. Failures of that work are raised here."""

    def elapsed_ms(self, start: Event) -> float:
        """Milliseconds from ``start`` to this event, both recorded, ``start`` first.

        Waits for both. Raises :class:`CapabilityError` where the device cannot time events and
        :class:`InvalidArgumentError` for events that were not recorded, are of another provider, or
        stand in the other order.
        """
        check_type("start", start, Event)
        if start.owner is not self.owner:
            raise InvalidArgumentError("The two events belong to different providers.")
        if not (start.recorded and self.recorded):
            raise InvalidArgumentError(
                "Both events must be recorded before the time between them can be asked.",
                hint="Call stream.record_event(event) on each.",
            )
        elapsed = self._elapsed_ms(start)
        if elapsed < 0:
            raise InvalidArgumentError(
                f"The start event was recorded {-elapsed:.3f} ms after this one.",
                hint="Call end.elapsed_ms(start).",
            )
        return elapsed

    @abstractmethod
    def _elapsed_ms(self, start: Any) -> float: ...


class Stream(ABC):
    """A queue of work that a device does in order. Made by ``provider.create_stream()``.

    ``with stream:`` sends kernels called in this thread to it. Work of different streams has no
    order but what events give it. ``priority``: larger is more urgent; a hint.
    """

    def __init__(self, owner: object, priority: int = 0) -> None:
        self.owner = owner
        self.priority = priority

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work given so far. A failure of that work is raised here, once."""

    @abstractmethod
    def query(self) -> bool:
        """Whether all work given so far is done; never waits."""

    def record_event(self, event: Event) -> None:
        """Put ``event`` behind the work given so far; a second recording replaces the first."""
        self._record(self._own(event))
        event.recorded = True

    def wait_event(self, event: Event) -> None:
        """Let later work of this stream wait for ``event``; the host does not wait.

        An event that was never recorded is done already.
        """
        if self._own(event).recorded:
            self._wait(event)

    def __enter__(self) -> Self:
        self._enter()
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _entered.set(_entered.get()[:-1])
        self._exit()

    def _own(self, event: Event) -> Event:
        check_type("event", event, Event)
        if event.owner is not self.owner:
            raise InvalidArgumentError("The event belongs to another provider.")
        return event

    @abstractmethod
    def _record(self, event: Any) -> None: ...

    @abstractmethod
    def _wait(self, event: Any) -> None: ...

    def _enter(self) -> None:
        """Tell the framework that this stream is now current in this thread."""

    def _exit(self) -> None:
        """Undo :meth:`_enter`."""


def entered_stream(owner: object) -> Stream | None:
    """The innermost entered stream of this provider in this thread, if any."""
    for stream in reversed(_entered.get()):
        if stream.owner is owner:
            return stream
    return None
