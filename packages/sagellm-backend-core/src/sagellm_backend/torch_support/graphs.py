"""Graphs over the graph class of a device module: ``CUDAGraph``, ``NPUGraph``, and their like.

The module offers the class, ``graph(graph, stream=..., capture_error_mode=...)`` as a context, and
``memory_snapshot()``, as torch.cuda does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.checks import check_type, shown
from sagellm_backend.errors import BackendError, InvalidArgumentError, UnavailableError
from sagellm_backend.graphs import Graph
from sagellm_backend.torch_support import step
from sagellm_backend.torch_support.errors import check
from sagellm_backend.torch_support.streams import settle, side_stream

if TYPE_CHECKING:
    from sagellm_backend.memory import MemoryLedger
    from sagellm_backend.torch_support.accelerator import AcceleratorProvider

_CLASSES = ("CUDAGraph", "NPUGraph", "Graph")
_HINT = (
    "What is captured may not wait for the device: no .item(), no copy from or to pageable memory, "
    "no shape that depends on values."
)


def graph_class(module: Any) -> Any:
    """The class of graphs that a device module has, or ``None``."""
    if not hasattr(module, "graph"):
        return None
    return next((getattr(module, name) for name in _CLASSES if hasattr(module, name)), None)


class TorchGraph(Graph):
    """Work of one device, captured on a stream of its own.

    ``function`` is called twice: once to warm up, which does its work, and once to be captured,
    which does none. Its inputs are used as they are and must not be freed by who resizes them;
    the graph keeps them alive. Metadata in mode ``paged_decode`` can be updated to any lengths that
    the captured block table has room for; other metadata, and other host values, are part of what
    was captured.
    """

    def __init__(
        self,
        provider: AcceleratorProvider,
        ledger: MemoryLedger,
        function: Callable[..., Any],
        inputs: Mapping[str, Any],
    ) -> None:
        self._provider, self._module = provider, provider.module
        self._device = torch.device(provider.device)
        self._inputs = dict(inputs)
        self._check_inputs()
        self._native, self._outputs = self._capture(function)
        self._nbytes = _pool_bytes(self._module, self._native)
        try:
            ledger.charge(self._nbytes, "graph")
        except BaseException:
            self._outputs = None
            self._native.reset()
            raise
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
        check_type("inputs", inputs, Mapping)
        for name, value in inputs.items():
            self._check_update(name, value)
        with check("update of a graph", str(self._device)):
            for name, value in inputs.items():
                captured = self._inputs[name]
                if isinstance(captured, torch.Tensor):
                    captured.copy_(value)
                elif isinstance(captured, AttentionMetadata):
                    step.overwrite(captured, value)

    def replay(self) -> Any:
        self._require_open()
        with check("replay of a graph", str(self._device)):
            self._native.replay()
        return self._outputs

    def close(self) -> None:
        if not self._release.alive:
            return
        try:
            with check("close of a graph", str(self._device)):
                # A replay may be under way on any stream, and its memory goes to others now.
                self._module.synchronize(self._device)
        finally:
            self._outputs, self._inputs = None, {}
            self._native.reset()
            self._release()

    def _capture(self, function: Callable[..., Any]) -> tuple[Any, Any]:
        stream = side_stream(self._module, self._device)
        settle(self._module, self._device)
        with self._module.stream(stream):
            function(**self._inputs)
        with check("capture", str(self._device)):
            stream.synchronize()
        native = graph_class(self._module)()
        try:
            with self._module.graph(native, stream=stream, capture_error_mode="thread_local"):
                outputs = function(**self._inputs)
        except BackendError:
            native.reset()
            raise
        except RuntimeError as error:
            native.reset()
            raise UnavailableError(
                f"The function could not be captured on {self._device}: {error}", hint=_HINT
            ) from error
        except BaseException:
            native.reset()
            raise
        return native, outputs

    def _check_inputs(self) -> None:
        for name, value in self._inputs.items():
            if isinstance(value, torch.Tensor) and value.device != self._device:
                raise InvalidArgumentError(
                    f"{name} is on {value.device}; static inputs lie on {self._device}."
                )
            if isinstance(value, AttentionMetadata):
                step.prepare(value, self._device)

    def _check_update(self, name: str, value: Any) -> None:
        if name not in self._inputs:
            known = ", ".join(self._inputs) or "none"
            raise InvalidArgumentError(f"{shown(name)} is no input of this graph; it has {known}.")
        captured = self._inputs[name]
        if isinstance(captured, torch.Tensor):
            self._check_array(name, captured, value)
        elif isinstance(captured, AttentionMetadata):
            problem = step.misfit(captured, check_type(name, value, AttentionMetadata))
            if problem:
                raise InvalidArgumentError(f"{name} does not fit this graph: {problem}.")
            step.prepare(value, self._device)
        elif type(value) is not type(captured) or value != captured:
            raise InvalidArgumentError(
                f"{name} is {shown(captured)} in this graph, for good, and not {shown(value)}.",
                hint="Pass it as an array, or capture another graph.",
            )

    def _check_array(self, name: str, captured: torch.Tensor, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            raise InvalidArgumentError(f"{name} must be an array, not {shown(value)}.")
        pairs = (
            ("shape", tuple(captured.shape), tuple(value.shape)),
            ("dtype", captured.dtype, value.dtype),
            ("device", captured.device, value.device),
        )
        for word, wanted, given in pairs:
            if wanted != given:
                raise InvalidArgumentError(
                    f"{name} has {word} {given}, and was captured with {wanted}."
                )

    def _require_open(self) -> None:
        if not self._release.alive:
            raise UnavailableError("This graph is closed.", hint="Capture a new one.")


def _pool_bytes(module: Any, native: Any) -> int:
    """What the private pool of a graph has reserved."""
    pool = tuple(native.pool())
    return sum(
        int(segment["total_size"])
        for segment in module.memory_snapshot()
        if tuple(segment.get("segment_pool_id", ())) == pool
    )
