"""Graphs: work recorded once and replayed many times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any


class Graph(ABC):
    """Captured work of one provider. Made by ``provider.capture(function, inputs)``.

    The arrays that ``function`` was given are the graph's static inputs and what it returned its
    static outputs; a replay reads the first and overwrites the second. Not thread-safe: one replay
    at a time.
    """

    @property
    @abstractmethod
    def outputs(self) -> Any:
        """What the captured function returned; overwritten by each replay."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Device memory that the graph holds, counted as ``graph_bytes``."""

    @abstractmethod
    def update(self, inputs: Mapping[str, Any]) -> None:
        """Set static inputs for the next replay, by name.

        Arrays are copied into the captured ones and must match them in shape and dtype. Host-side
        values (an :class:`AttentionMetadata`, say) replace the captured ones: on devices whose
        kernels take lengths from the host, this is where they are patched.
        """

    @abstractmethod
    def replay(self) -> Any:
        """Do the captured work on the current stream; returns :attr:`outputs`."""

    @abstractmethod
    def close(self) -> None:
        """Give the graph's memory back. Closing twice is allowed."""
