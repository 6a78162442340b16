"""A toy of graphs over the reference kernels: honest, and then broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.checks import check_type
from sagellm_backend.conformance.zoo.features import Having
from sagellm_backend.conformance.zoo.member import honest, member
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.graphs import Graph
from sagellm_backend.reference.arrays import DeviceArray

Kernel = Callable[..., Any]


@dataclass
class Node:
    """One call of a kernel, and the arrays that its results go to."""

    kernel: Kernel
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[DeviceArray, ...]


class ToyGraph(Graph):
    """A list of calls. A replay makes them again, and copies their results to their places."""

    def __init__(self, provider: ToyGraphs, inputs: Mapping[str, Any]) -> None:
        self.provider = provider
        self.inputs = dict(inputs)
        self.nodes: list[Node] = []
        self.closed = False
        self.result: Any = None
        self.charged = 0

    @property
    def outputs(self) -> Any:
        return self.result

    @property
    def nbytes(self) -> int:
        return self.charged

    def add(self, kernel: Kernel, args: Any, kwargs: Any, result: Any) -> None:
        """Record a call and what it gave."""
        outputs = result if isinstance(result, tuple) else (result,)
        arrays = tuple(item for item in outputs if isinstance(item, DeviceArray))
        self.nodes.append(Node(kernel, args, dict(kwargs), arrays))

    def seal(self, result: Any) -> None:
        """Count what the recorded calls hold."""
        self.result = result
        nbytes = sum(array.nbytes for node in self.nodes for array in node.outputs)
        self.provider._ledgers.of(self.provider.device).charge(nbytes, "graph")
        self.charged = nbytes

    def update(self, inputs: Mapping[str, Any]) -> None:
        self._require_open()
        for name, value in check_type("inputs", inputs, Mapping).items():
            self._check_input(name, value)
        for name, value in inputs.items():
            self.set_input(name, value)

    def set_input(self, name: str, value: Any) -> None:
        """Put one input in the place of the captured one."""
        held = self.inputs[name]
        if isinstance(held, DeviceArray):
            self.provider._write_back(held, self.provider.to_numpy(value))
            return
        for node in self.nodes:
            node.kwargs = {
                key: value if item is held else item for key, item in node.kwargs.items()
            }
            node.args = tuple(value if item is held else item for item in node.args)
        self.inputs[name] = value

    def replay(self) -> Any:
        self._require_open()
        for node in self.nodes:
            self.run(node)
        return self.result

    def run(self, node: Node) -> None:
        """Make one call again."""
        result = node.kernel(*node.args, **node.kwargs)
        made = result if isinstance(result, tuple) else (result,)
        for target, source in zip(node.outputs, made, strict=True):
            self.copy(source, target)

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy a result to its place, as work of the current stream."""

        def work() -> None:
            target.raw()[...] = source.raw()

        self.provider.current_stream(target.device).submit(work, [target.storage])

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.provider._ledgers.of(self.provider.device).release(self.charged, "graph")
            self.nodes.clear()

    def _check_input(self, name: str, value: Any) -> None:
        if name not in self.inputs:
            raise InvalidArgumentError(f"The graph has no input {name!r}.")
        held = self.inputs[name]
        fits = type(value) is type(held)
        if fits and isinstance(held, DeviceArray):
            fits = (value.shape, value.dtype) == (held.shape, held.dtype)
        if not fits:
            raise InvalidArgumentError(f"{name} does not match the captured {held!r}.")

    def _require_open(self) -> None:
        if self.closed:
            raise UnavailableError("This graph is closed.")


@honest("Its graphs are lists of calls, made again", profiles=("graph", "core"))
class ToyGraphs(Having):
    has = frozenset({Feature.GRAPH})
    graph: type[ToyGraph] = ToyGraph
    _recording: ToyGraph | None = None

    def _capability(self) -> CapabilityDescriptor:
        return replace(super()._capability(), has_graph_exec=True)

    def get_kernel(self, name: str, **static: Any) -> Kernel:
        kernel = super().get_kernel(name, **static)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = kernel(*args, **kwargs)
            if self._recording is not None:
                self._recording.add(kernel, args, kwargs, result)
            return result

        return call

    def _capture(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Graph:
        if not callable(function):
            raise InvalidArgumentError("function cannot be called.")
        graph = self.graph(self, check_type("inputs", inputs, Mapping))
        self._recording = graph
        try:
            result = function(**inputs)
        finally:
            self._recording = None
        graph.seal(result)
        return graph


class _Frozen(ToyGraph):
    def replay(self) -> Any:
        self._require_open()
        return self.result


@member("graph", "A replay does nothing", kills=("graph.replay_reads_updated_inputs",))
class ReplayDoesNothing(ToyGraphs):
    graph = _Frozen


class _FirstOnly(ToyGraph):
    def add(self, kernel: Kernel, args: Any, kwargs: Any, result: Any) -> None:
        if not self.nodes:
            super().add(kernel, args, kwargs, result)


@member("graph", "Only the first call is recorded", kills=("graph.replay_reads_updated_inputs",))
class GraphRecordsOneCall(ToyGraphs):
    graph = _FirstOnly


class _Noisy(ToyGraph):
    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        def work() -> None:
            words = target.raw().view("u1")
            words[...] = source.raw().view("u1") ^ 1

        self.provider.current_stream(target.device).submit(work, [target.storage])


@member("graph", "A replay runs other kernels", kills=("graph.replay_equals_eager",))
class ReplayRunsOtherKernels(ToyGraphs):
    graph = _Noisy


class _Late(ToyGraph):
    waiting: dict[str, Any] = {}

    def update(self, inputs: Mapping[str, Any]) -> None:
        earlier, self.waiting = self.waiting, dict(check_type("inputs", inputs, Mapping))
        for name, value in inputs.items():
            self._check_input(name, value)
        super().update(earlier)


@member("graph", "Updates are one replay late", kills=("graph.replay_reads_updated_inputs",))
class UpdatesAreLate(ToyGraphs):
    graph = _Late


class _Elsewhere(ToyGraph):
    def run(self, node: Node) -> None:
        fresh = tuple(self.provider.empty(array.shape, array.dtype) for array in node.outputs)
        renamed = {id(old): new for old, new in zip(node.outputs, fresh, strict=True)}
        super().run(replace(node, outputs=fresh))
        for other in self.nodes:
            other.args = tuple(renamed.get(id(item), item) for item in other.args)
        self.result = tuple(renamed.get(id(item), item) for item in self.result)
        node.outputs = fresh


@member("graph", "Every replay has outputs of its own", kills=("graph.outputs_are_overwritten",))
class OutputsGoElsewhere(ToyGraphs):
    graph = _Elsewhere


class _Scratch(ToyGraph):
    def add(self, kernel: Kernel, args: Any, kwargs: Any, result: Any) -> None:
        super().add(kernel, args, kwargs, result)
        places = self.provider.__dict__.setdefault("places", {})
        for place, array in enumerate(self.nodes[-1].outputs):
            shared = places.setdefault((len(self.nodes), place, *array.shape), array)
            array._values, array.storage = shared.raw(), shared.storage


@member("graph", "Graphs share their memory", kills=("graph.graphs_do_not_share",))
class GraphsShareMemory(ToyGraphs):
    graph = _Scratch


class _Uncounted(ToyGraph):
    def seal(self, result: Any) -> None:
        self.result = result


@member("graph", "Graphs hold nothing, they say", kills=("graph.graphs_are_counted",))
class GraphsAreNotCounted(ToyGraphs):
    graph = _Uncounted


class _Leaking(ToyGraph):
    def close(self) -> None:
        self.closed = True


@member("graph", "A closed graph still counts", kills=("graph.graphs_are_counted",))
class ClosedGraphsCount(ToyGraphs):
    graph = _Leaking


class _Lenient(ToyGraph):
    def _check_input(self, name: str, value: Any) -> None:
        if name in self.inputs:
            super()._check_input(name, value)

    def set_input(self, name: str, value: Any) -> None:
        if name in self.inputs:
            super().set_input(name, value)


@member("graph", "Unknown inputs are ignored", kills=("graph.bad_updates_are_refused",))
class UnknownInputsAreIgnored(ToyGraphs):
    graph = _Lenient


@member("graph", "A capture that failed goes on", kills=("graph.bad_captures_are_refused",))
class CaptureStaysOpen(ToyGraphs):
    def _capture(self, function: Callable[..., Any], inputs: Mapping[str, Any]) -> Graph:
        try:
            return super()._capture(function, inputs)
        except InvalidArgumentError as error:
            if "planted" in str(error):
                self._ledgers.of(self.device).charge(64, "graph")
            raise


class _Baked(ToyGraph):
    def set_input(self, name: str, value: Any) -> None:
        if isinstance(self.inputs[name], DeviceArray):
            super().set_input(name, value)


@member("graph", "Lengths stay those of the capture", kills=("graph.metadata_can_be_updated",))
class LengthsAreBakedIn(ToyGraphs):
    graph = _Baked
