"""Graphs of the CPU: launches of compiled kernels, played without Python between them."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.checks import check_type
from sagellm_backend.cpu import capturing
from sagellm_backend.cpu.capturing import Follower
from sagellm_backend.cpu.compiled.program import Program
from sagellm_backend.cpu.recording import Call, Recording
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.graphs import Graph
from sagellm_backend.memory import MemoryLedger
from sagellm_backend.torch_support import graph_inputs
from sagellm_backend.torch_support.errors import check

_CPU = torch.device("cpu")


class CPUGraph(Graph):
    """Work of one call of ``function``, which does it; a replay does it again.

    What its kernels and torch do is recorded, on the thread that captures; what Python does besides,
    and looks at, stays as it was. Kernels of the caller's own are recorded as far as they call torch.
    Its inputs are used as they are; the graph keeps them, and the weights and caches that it has
    read, alive, and the memory of its intermediate results for itself. Metadata in mode
    ``paged_decode`` can be updated to any lengths that the captured block table has room for; other
    metadata, and other host values, are part of what was captured.
    """

    def __init__(
        self, ledger: MemoryLedger, function: Callable[..., Any], inputs: Mapping[str, Any]
    ) -> None:
        self._inputs = dict(inputs)
        graph_inputs.check(self._inputs, _CPU)
        recording = Recording()
        with recording.under_way():
            self._outputs = function(**self._inputs)
        self._recording: Recording | None = recording
        self._parts = recording.parts()
        self._followers: defaultdict[Any, list[Follower]] = defaultdict(list)
        for follower in recording.followers:
            self._followers[follower.key].append(follower)
        self._used: dict[Any, Any] = {}
        self._current = dict(self._inputs)
        self._nbytes = recording.nbytes
        ledger.charge(self._nbytes, "graph")
        self._release = weakref.finalize(self, ledger.release, self._nbytes, "graph")
        self._release.atexit = False

    @property
    def outputs(self) -> Any:
        self._require_open()
        return self._outputs

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def update(self, inputs: Mapping[str, Any]) -> None:
        self._require_open()
        for name, value in check_type("inputs", inputs, Mapping).items():
            graph_inputs.check_update(self._inputs, name, value)
        with check("update of a graph", "cpu"):
            for name, value in inputs.items():
                captured = self._inputs[name]
                if isinstance(captured, torch.Tensor):
                    captured.copy_(value)
                elif isinstance(captured, AttentionMetadata):
                    self._follow(name, value)

    def replay(self) -> Any:
        self._require_open()
        if capturing.mine() is not None:
            raise UnavailableError("A graph cannot be replayed while another is captured.")
        with torch.no_grad(), check("replay of a graph", "cpu"):
            for part in self._parts:
                try:
                    failed = part.run()
                except IndexError as error:
                    name = part.name if isinstance(part, Call) else "A kernel"
                    raise _out_of_range(f"{name}: {error}") from error
                if failed is not None:
                    raise _out_of_range(f"{failed} met a position or a slot outside of its table")
        return self._outputs

    def close(self) -> None:
        self._outputs, self._parts, self._recording = None, [], None
        self._inputs, self._current, self._used = {}, {}, {}
        self._followers.clear()
        self._release()

    def _follow(self, name: str, metadata: AttentionMetadata) -> None:
        """Let what depends on the captured metadata depend on this."""
        captured, current = self._inputs[name], self._current[name]
        for part in self._parts:
            if isinstance(part, Call):
                part.follow(current, metadata)
        for key, group in self._followers.items():
            if group[0].metadata is captured:
                change = group[0].change(metadata)
                program = self._parts[group[0].step]
                assert isinstance(program, Program)
                program.change([one.launch for one in group], change.words, change.chunks)
                self._used[key] = change.memory
        self._current[name] = metadata

    def _require_open(self) -> None:
        if not self._release.alive:
            raise UnavailableError("This graph is closed.", hint="Capture a new one.")


def _out_of_range(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{what}, and the replay ended there.", hint="Look at the inputs of the last update."
    )
