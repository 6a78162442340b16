"""Graphs over the graph class of a device module: ``CUDAGraph``, ``NPUGraph``, and their like.

The module offers the class, ``graph(graph, stream=..., capture_error_mode=...)`` as a context, and
``memory_snapshot()``, as torch.cuda does; with ``graph_pool_handle()`` too, its graphs share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.checks import check_type
from sagellm_backend.errors import BackendError, UnavailableError
from sagellm_backend.graphs import Graph
from sagellm_backend.torch_support import graph_inputs, step
from sagellm_backend.torch_support.errors import check
from sagellm_backend.torch_support.graph_pool import GraphPool
from sagellm_backend.torch_support.streams import settle

if TYPE_CHECKING:
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
    """Work of one device, captured on the stream of its provider's pool of graphs.

    ``function`` is called twice: once to warm up, which does its work, and once to be captured,
    which does none. It returns arrays, alone or in tuples, lists and dicts, of the same shapes both
    times. Its inputs are used as they are and must not be freed by who resizes them;
    the graph keeps them alive. Metadata in mode ``paged_decode`` can be updated to any lengths that
    the captured block table has room for; other metadata, and other host values, are part of what
    was captured.
    """

    def __init__(
        self,
        provider: AcceleratorProvider,
        pool: GraphPool,
        function: Callable[..., Any],
        inputs: Mapping[str, Any],
    ) -> None:
        self._provider, self._module, self._pool = provider, provider.module, pool
        self._device = torch.device(provider.device)
        self._inputs = dict(inputs)
        graph_inputs.check(self._inputs, self._device)
        for value in self._inputs.values():
            if isinstance(value, AttentionMetadata):
                step.prepare(value, self._device)
        with pool.held():
            self._native, self._outputs = self._capture(function)
            try:
                self._nbytes, self._release = pool.join(self, self._native, self._outside)
            except BaseException:
                self._outputs = None
                self._native.reset()
                raise

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
            self._pool.replay(self._native.replay)
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
        stream = self._pool.stream
        settle(self._module, self._device)
        with self._module.stream(stream):
            first = tree_leaves(function(**self._inputs))
            room = [_room(leaf) for leaf in first]  # not to be made in the pool, by the capture
        with check("capture", str(self._device)):
            stream.synchronize()
        native = graph_class(self._module)()
        try:
            with self._module.graph(
                native, stream=stream, capture_error_mode="thread_local", **self._pool.options()
            ):
                outputs = self._copied_out(function(**self._inputs), first, room)
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

    def _copied_out(self, outputs: Any, first: list[Any], room: list[Any]) -> Any:
        """Outputs where no other graph of the pool writes: over those of the warm-up.

        What lay in one place both times is not of the pool, and stays.
        """
        self._outside = 0
        if not self._pool.shared:
            return outputs
        leaves, structure = tree_flatten(outputs)
        kept: dict[int, int] = {}
        for place, (old, into, new) in enumerate(zip(first, room, leaves, strict=True)):
            if isinstance(new, torch.Tensor) and _address(old) != _address(new):
                into.copy_(new)
                leaves[place] = into
                kept[_address(into)] = into.untyped_storage().nbytes()
        self._outside = sum(kept.values())
        return tree_unflatten(leaves, structure)

    def _check_update(self, name: str, value: Any) -> None:
        graph_inputs.check_update(self._inputs, name, value)
        if isinstance(value, AttentionMetadata):
            step.prepare(value, self._device)

    def _require_open(self) -> None:
        if not self._release.alive:
            raise UnavailableError("This graph is closed.", hint="Capture a new one.")


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _room(leaf: Any) -> Any:
    """An output of the warm-up, if it can be written over: no element of it twice in one place."""
    if isinstance(leaf, torch.Tensor) and 0 in leaf.stride():
        return leaf.clone(memory_format=torch.contiguous_format)
    return leaf
