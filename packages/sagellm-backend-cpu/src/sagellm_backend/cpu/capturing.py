"""Where kernels tell of what they do, while a graph is captured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sagellm_backend.attention import AttentionMetadata

if TYPE_CHECKING:
    from sagellm_backend.cpu.recording import Recording


class Change(NamedTuple):
    """What other metadata changes in a launch: words by their index, and its chunks."""

    words: Mapping[int, int]
    chunks: int
    memory: Any
    """What must live as long as the words are in use."""


class Follower(NamedTuple):
    """A launch of one of the steps of a recording, whose words depend on metadata.

    ``change`` is the same for all of one ``key``.
    """

    step: int
    launch: int
    metadata: AttentionMetadata
    key: Any
    change: Callable[[AttentionMetadata], Change]


recording: Recording | None = None
"""The capture of this process, if one is under way: there is one at a time, of one thread."""


def mine() -> Recording | None:
    """The capture of this thread."""
    found = recording
    if found is None or found.thread != threading.get_ident():
        return None
    return found


def launch(function: Any, words: Any, chunks: int) -> None:
    """A compiled kernel is about to run with these words."""
    found = mine()
    if found is not None:
        found.launch(function, words, chunks)


def touch(memory: Sequence[Any]) -> None:
    """A kernel is about to use these, tensors or others, by their addresses."""
    found = mine()
    if found is not None:
        found.keep(memory)


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that decides by what it finds on the host.

    A capture records the call as a whole, to be made again at each replay.
    """
    found = mine()
    return function(*args, **kwargs) if found is None else found.call(function, args, kwargs)
