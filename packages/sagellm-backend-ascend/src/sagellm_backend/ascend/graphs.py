"""Graphs whose calls of the fused operator are told their lengths anew.

That operator reads lengths on the host, when it is launched, so that a replay would repeat those of
the capture. Each such call is therefore captured as a task group behind an external event. To patch
it, the call is made again between the marks of an update: nothing runs then, and the captured task
gets the new arguments. The order of calls is that of torch_npu's own ``NPUGraph.update``
(torch_npu 2.13, npu/graphs.py), except that events are recorded before a replay, not behind it: an
update that fails then leaves no graph waiting on the device. None of this has run on an NPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from sagellm_backend.ascend import npu
from sagellm_backend.ascend.lengths import Lengths, lengths_of
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.torch_support.errors import check
from sagellm_backend.torch_support.graphs import TorchGraph
from sagellm_backend.torch_support.streams import native_event, side_stream

Launch = Callable[[Lengths], object]
"""Makes one call with these lengths, on the same arrays every time."""


class Task(NamedTuple):
    """One captured call: what it belongs to, and how many blocks its cache has."""

    launch: Launch
    metadata: AttentionMetadata
    blocks: int
    event: Any
    handle: Any


class Tasks:
    """The calls of one graph that read lengths on the host. Not thread-safe."""

    def __init__(self, module: Any, device: torch.device) -> None:
        self._module, self._device = module, device
        self._tasks: list[Task] = []
        self._updates = side_stream(module, device)
        self._replayed: Any = None
        self.workspaces: dict[Any, torch.Tensor] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Take up the calls that this thread captures in the block."""
        token = _recording.set(self)
        try:
            yield
        finally:
            _recording.reset(token)

    def capture(self, launch: Launch, metadata: AttentionMetadata, blocks: int) -> None:
        """Make a call on the stream that is captured, so that it can be made again."""
        stream, event = self._module.current_stream(self._device), self._module.ExternalEvent()
        event.wait(stream)
        event.reset(stream)
        self._module.graph_task_group_begin(stream)
        try:
            launch(lengths_of(metadata))
        finally:
            handle = self._module.graph_task_group_end(stream)
        self._tasks.append(Task(launch, metadata, blocks, event, handle))

    def misfit(self, captured: AttentionMetadata, new: AttentionMetadata) -> str:
        """Why the calls of ``captured`` cannot take the lengths of ``new``; empty where they can."""
        caches = [task.blocks for task in self._tasks if task.metadata is captured]
        wanted = lengths_of(new).blocks
        if caches and wanted > min(caches):
            return (
                f"its sequences have {wanted} blocks, each one's counted, and the operator takes "
                f"up to {min(caches)}, which is what a cache has"
            )
        return ""

    def patch(self, captured: AttentionMetadata, new: AttentionMetadata) -> None:
        """Give the calls of ``captured`` the lengths of ``new``, when the last replay has ended."""
        tasks = [task for task in self._tasks if task.metadata is captured]
        if not tasks:
            return
        lengths = lengths_of(new)
        self._follow_replay()
        with self._module.stream(self._updates):
            for task in tasks:
                self._module.graph_task_update_begin(self._updates, task.handle)
                try:
                    task.launch(lengths)
                finally:
                    self._module.graph_task_update_end(self._updates)

    def release(self) -> None:
        """Let the next replay pass, behind the last one and every patch."""
        if self._tasks:
            self._follow_replay()
        for task in self._tasks:
            task.event.record(self._updates)

    def replayed(self) -> None:
        """Note that the current stream has the graph now."""
        if self._tasks:
            self._replayed = self._replayed or native_event(self._module, timing=False)
            self._replayed.record(self._module.current_stream(self._device))

    def clear(self) -> None:
        """Forget the calls, and with them their arrays."""
        self._tasks, self.workspaces = [], {}

    def _follow_replay(self) -> None:
        # A replay resets its events: one that was recorded before would be lost, and the next
        # replay would wait for ever.
        if self._replayed is not None:
            self._updates.wait_event(self._replayed)


_recording: ContextVar[Tasks | None] = ContextVar("sagellm_backend.ascend.graphs", default=None)


def recording() -> Tasks | None:
    """The graph that this thread is capturing; ``None`` where there is none, or only a warm-up."""
    found = _recording.get()
    return found if found is not None and npu.is_current_stream_capturing() else None


class AscendGraph(TorchGraph):
    """A graph of one NPU. Decodes by the vendor's operator follow the metadata of each update.

    What those calls work in, and on, is held until the graph is closed.
    """

    _patched = True

    def update(self, inputs: Mapping[str, Any]) -> None:
        super().update(inputs)
        self._patched = False
        with check("update of a graph", str(self._device)):
            for name, value in inputs.items():
                if isinstance(value, AttentionMetadata):
                    self._tasks.patch(self._inputs[name], value)
        self._patched = True

    def replay(self) -> Any:
        self._require_open()
        if not self._patched:
            raise UnavailableError(
                "The last update of this graph failed on its way.",
                hint="Update it again, or capture a new one.",
            )
        with check("replay of a graph", str(self._device)):
            self._tasks.release()
        outputs = super().replay()
        with check("replay of a graph", str(self._device)):
            self._tasks.replayed()
        return outputs

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._tasks.clear()

    def _capture(self, function: Callable[..., Any]) -> tuple[Any, Any]:
        self._tasks = Tasks(self._module, self._device)
        with self._tasks.recorded():
            return super()._capture(function)

    def _check_update(self, name: str, value: Any) -> None:
        super()._check_update(name, value)
        if isinstance(value, AttentionMetadata):
            problem = self._tasks.misfit(self._inputs[name], value)
            if problem:
                raise InvalidArgumentError(f"{name} does not fit this graph: {problem}.")
