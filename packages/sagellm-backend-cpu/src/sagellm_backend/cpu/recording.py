"""What a function does on the CPU, taken down while it does it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cpu import capturing
from sagellm_backend.cpu.arena import Arena, storage_of
from sagellm_backend.cpu.capturing import Change, Follower
from sagellm_backend.cpu.compiled.program import Launch, Program
from sagellm_backend.errors import UnavailableError

_aten = torch.ops.aten
_EMPTY = (_aten.empty.memory_format, _aten.new_empty.default, _aten.empty_like.default)
_captures = threading.Lock()


class Call:
    """A call of Python, of which the results are copied to where they were in the capture."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any, results: Any) -> None:
        self._function, self._results = function, results
        self._args, self._kwargs = tuple(args), dict(kwargs)

    @property
    def name(self) -> str:
        """What is called."""
        return str(self._function)

    def run(self) -> None:
        """Call again."""
        made = tree_leaves(self._function(*self._args, **self._kwargs))
        for kept, new in zip(self._results, made, strict=True):
            if kept is not None and new is not kept:
                if new.shape != kept.shape:
                    raise UnavailableError(
                        f"{self._function} gave {tuple(new.shape)} in a replay, and "
                        f"{tuple(kept.shape)} when it was captured.",
                        hint="Capture no shapes that depend on values.",
                    )
                kept.copy_(new)

    def follow(self, old: AttentionMetadata, new: AttentionMetadata) -> None:
        """Take another metadata where this one is an argument."""
        self._args = tuple(new if item is old else item for item in self._args)
        self._kwargs = {name: new if item is old else item for name, item in self._kwargs.items()}


class Recording:
    """Launches of kernels, and the calls of torch between them. Everything is done as it is recorded."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.arena = Arena()
        self.followers: list[Follower] = []
        self._steps: list[list[Launch] | Call] = []
        self._kept: dict[int, Any] = {}
        self._made: dict[int, int] = {}

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Record what this thread does. There is one recording at a time in a process; others wait."""
        if capturing.mine() is not None:
            raise UnavailableError(
                "A graph is being captured by this thread already.",
                hint="Capture one function at a time.",
            )
        with _captures, _Mode(self):
            capturing.recording = self
            try:
                yield
            finally:
                capturing.recording = None

    @property
    def nbytes(self) -> int:
        """Bytes of what was made by the function and is kept for replays."""
        return self.arena.nbytes + sum(self._made.values())

    def launch(self, function: Any, words: Any, chunks: int) -> None:
        """Take down a launch that is about to run."""
        if not self._steps or isinstance(self._steps[-1], Call):
            self._steps.append([])
        launches = self._steps[-1]
        assert isinstance(launches, list)
        launches.append(Launch(function, bytes(words), chunks))

    def parts(self) -> list[Program | Call]:
        """What to run for a replay, in this order."""
        return [Program(step) if isinstance(step, list) else step for step in self._steps]

    def keep(self, things: Sequence[Any]) -> None:
        """Let these live as long as what was recorded, but for what lies in the arena."""
        for item in things:
            if not (isinstance(item, Tensor) and self.arena.holds(item)):
                self._kept[id(item)] = item

    def follow(
        self,
        metadata: AttentionMetadata,
        key: Any,
        change: Callable[[AttentionMetadata], Change],
        memory: Any,
    ) -> None:
        """Say what depends on metadata in the launch that was the last; ``memory`` is of its words."""
        self.keep((memory,))
        step = len(self._steps) - 1
        launches = self._steps[step]
        assert isinstance(launches, list)
        group = step, id(metadata), key
        self.followers.append(Follower(step, len(launches) - 1, metadata, group, change))

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Make and record a call as a whole, whatever it does inside."""
        capturing.recording = None
        try:
            result = function(*args, **kwargs)
        finally:
            capturing.recording = self
        self._add(function, args, kwargs, result, True)
        return result

    def torch_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call of torch and record it."""
        result = func(*args, **kwargs)
        if capturing.recording is None:
            return result  # a part of a call that is recorded as a whole
        if func in _EMPTY:
            return self._placed(result)
        changes = func._schema.is_mutable  # noqa: SLF001 - torch has no other name for it
        self._add(func, args, kwargs, result, changes)
        return result

    def _placed(self, tensor: Tensor) -> Tensor:
        plain = type(tensor) is Tensor and tensor.is_cpu and tensor.layout is torch.strided
        if plain and tensor.is_contiguous() and not tensor.is_pinned():
            return self.arena.like(tensor)
        self._count(tensor)
        return tensor

    def _add(self, function: Any, args: Any, kwargs: Any, result: Any, changes: bool) -> None:
        """Record a call, unless it changes nothing and gives only views of what was there."""
        given = {
            storage_of(item) for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)
        }
        results: list[Tensor | None] = []
        for item in tree_leaves(result):
            if not isinstance(item, Tensor | None):
                raise UnavailableError(
                    f"{function} looks at values on the host, which a replay cannot do anew.",
                    hint="Decide outside of what is captured, or by arithmetic on arrays.",
                )
            results.append(None if item is None or storage_of(item) in given else item)
        fresh = [item for item in results if item is not None]
        if changes or fresh:
            self._steps.append(Call(function, args, kwargs, results))
        for item in fresh:
            self._count(item)

    def _count(self, tensor: Tensor) -> None:
        self._kept[id(tensor)] = tensor
        self._made[storage_of(tensor)] = tensor.nbytes


class _Mode(TorchDispatchMode):
    """Hands the calls of torch to a recording."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recording = recording

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import it at the first call; nothing is compiled here

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._recording.torch_call(func, args, kwargs or {})
