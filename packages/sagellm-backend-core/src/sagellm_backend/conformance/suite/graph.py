"""Graphs: a replay does what the function does, with the inputs of the day."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.load import computes
from sagellm_backend.conformance.paged import dtypes, random_cache
from sagellm_backend.conformance.suite.core_memory import own
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import (
    BackendError,
    CapabilityError,
    InvalidArgumentError,
    UnavailableError,
)

Array = np.ndarray[Any, Any]

_GRAPH = (Feature.GRAPH,)
_SIZE = 48


def _matmul_dtypes(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    return capability.operations.get("matmul", ())


class _Step:
    """``x -> (x @ w, (x @ w) @ w)`` as an engine writes it, and the inputs for it."""

    def __init__(self, exam: Exam) -> None:
        self._exam, self._provider = exam, exam.provider
        offered = _matmul_dtypes(exam.capability)
        self.dtype = exam.case.values.get("dtype", offered[0])
        self._matmul = exam.provider.get_kernel("matmul", dtype=self.dtype)
        self.weight = exam.provider.from_numpy(self._host())
        self.static = self.input()

    def __call__(self, x: Any) -> tuple[Any, Any]:
        first = self._matmul(x, self.weight)
        return first, self._matmul(first, self.weight)

    def input(self) -> Any:
        """A new array for x."""
        return self._provider.from_numpy(self._host())

    def captured(self) -> Any:
        """The graph of this step."""
        return self._provider.capture(self, {"x": self.static})

    def check(self, graph: Any, x: Any, what: str) -> None:
        """Fail unless a replay gives bit for bit what the kernels give for ``x``."""
        wanted = self(x)
        replayed = graph.replay()
        self._provider.synchronize()
        for got, right in zip(replayed, wanted, strict=True):
            to_numpy = self._provider.to_numpy
            self._exam.equal_bits(to_numpy(got), to_numpy(right), what)

    def _host(self) -> Array:
        drawn = np.asarray(self._exam.rng.standard_normal((_SIZE, _SIZE)))
        return np.asarray(drawn / _SIZE**0.5, self.dtype.numpy)


@case("graph", requires=_GRAPH, params={"dtype": _matmul_dtypes})
def replay_equals_eager(exam: Exam) -> None:
    """A replay gives bit for bit what the same kernels give without a graph, each time anew.

    Kills a graph that does not record all of its work, and one that runs other kernels.
    """
    step = _Step(exam)
    graph = step.captured()
    for turn in range(3):
        step.check(graph, step.static, f"replay {turn}")


@case("graph", requires=_GRAPH, params={"dtype": _matmul_dtypes})
def replay_reads_updated_inputs(exam: Exam) -> None:
    """After ``update`` a replay computes with the new inputs, which stay the caller's.

    Kills a graph that keeps the inputs of its capture, or is one update late.
    """
    step = _Step(exam)
    graph = step.captured()
    for turn in range(3):
        new = step.input()
        host = exam.provider.to_numpy(new)
        graph.update({"x": new})
        step.check(graph, new, f"the replay after update {turn}")
        exam.equal_bits(exam.provider.to_numpy(new), host, "the array that was given to update")
    graph.update({})
    step.check(graph, new, "the replay after an update of nothing")


@case("graph", requires=_GRAPH, needs=computes)
def outputs_are_overwritten(exam: Exam) -> None:
    """``replay`` returns :attr:`outputs`, the same arrays every time, with new contents.

    Kills a replay whose results go elsewhere.
    """
    step = _Step(exam)
    graph = step.captured()
    first = graph.replay()
    exam.provider.synchronize()
    before = exam.provider.to_numpy(first[1])
    graph.update({"x": step.input()})
    graph.replay()
    exam.provider.synchronize()
    after = exam.provider.to_numpy(first[1])
    exam.check(before.tobytes() != after.tobytes(), "a replay left the outputs as they were.")
    for held, named in zip(first, graph.outputs, strict=True):
        to_numpy = exam.provider.to_numpy
        exam.equal_bits(to_numpy(held), to_numpy(named), "an output that was kept")


@case("graph", requires=_GRAPH, needs=computes)
def graphs_do_not_share(exam: Exam) -> None:
    """Two graphs are replayed in turn, and neither reads or writes what is the other's.

    Kills scratch memory of one graph that another overwrites.
    """
    steps = [_Step(exam) for _ in range(2)]
    graphs = [step.captured() for step in steps]
    for turn in range(4):
        step, graph = steps[turn % 2], graphs[turn % 2]
        new = step.input()
        graph.update({"x": new})
        step.check(graph, new, f"turn {turn}")
    kept = exam.provider.to_numpy(graphs[1].outputs[0])
    graphs[0].replay()
    exam.provider.synchronize()
    exam.equal_bits(exam.provider.to_numpy(graphs[1].outputs[0]), kept, "the other graph's output")


@case("graph", requires=_GRAPH, needs=computes)
def graphs_are_counted(exam: Exam) -> None:
    """What open graphs hold counts as ``graph``, to the byte, until they are closed.

    A closed graph refuses to be replayed. Kills a graph that counts nothing, or for ever.
    """
    step, before = _Step(exam), own(exam)["graph_bytes"]
    graphs = [step.captured() for _ in range(2)]
    held = sum(graph.nbytes for graph in graphs)
    counted = own(exam)["graph_bytes"] - before
    exam.check(counted == held > 0, f"two graphs hold {held:,} bytes, and {counted:,} are counted.")
    for graph in graphs:
        graph.close()
        graph.close()
        exam.refuses(UnavailableError, graph.replay)
        exam.refuses(UnavailableError, graph.update, {"x": step.static})
    left = own(exam)["graph_bytes"] - before
    exam.check(left == 0, f"{left:,} bytes of closed graphs still count.")


@case("graph", requires=_GRAPH, needs=computes)
def bad_updates_are_refused(exam: Exam) -> None:
    """Unknown names, and arrays of another shape, dtype or kind are refused; nothing is changed.

    Kills a copy that runs past the captured array.
    """
    step = _Step(exam)
    graph = step.captured()
    other = next(dtype for dtype in (DType.INT32, DType.FP32) if dtype is not step.dtype)
    make = exam.provider.from_numpy
    junk: tuple[Any, ...] = (
        {"y": step.static},
        {"x": None},
        {"x": "text"},
        {"x": make(np.zeros((_SIZE, _SIZE), other.numpy))},
        {"x": make(np.zeros((_SIZE, _SIZE + 1), step.dtype.numpy))},
        {"x": make(np.zeros((_SIZE * _SIZE,), step.dtype.numpy))},
        {"x": step.input(), "y": step.static},
        None,
        [step.static],
    )
    for inputs in junk:
        exam.refuses(InvalidArgumentError, graph.update, inputs)
    step.check(graph, step.static, "a replay after refused updates")


@case("graph", requires=_GRAPH, needs=computes)
def bad_captures_are_refused(exam: Exam) -> None:
    """What cannot be called or is no mapping is refused, and a function that fails leaves no trace.

    Kills a stream that stays in capture after a failure.
    """
    step, provider = _Step(exam), exam.provider
    exam.refuses(InvalidArgumentError, provider.capture, None, {})
    exam.refuses(InvalidArgumentError, provider.capture, step, None)
    before = own(exam)["graph_bytes"]

    def faulty(x: Any) -> Any:
        step(x)
        raise InvalidArgumentError("planted")

    exam.refuses(BackendError, provider.capture, faulty, {"x": step.static}, says=("planted",))
    exam.check(own(exam)["graph_bytes"] == before, "a failed capture still counts.")
    step.check(step.captured(), step.static, "a capture after one that failed")


@case("graph", requires=_GRAPH, params={"dtype": dtypes})
def metadata_can_be_updated(exam: Exam) -> None:
    """A decode graph follows its sequences: new lengths and blocks are patched for each replay.

    Kills lengths that are baked into the graph.
    """
    provider, size = exam.provider, 16
    made = random_cache(exam, [64, 64], size, kv_heads=2, width=32)
    caches = {name: provider.from_numpy(cache) for name, cache in (("k", made.k), ("v", made.v))}
    kernel = provider.get_kernel("attention", dtype=exam["dtype"])

    def decode(q: Any, metadata: Any) -> Any:
        return kernel(q, **caches, metadata=metadata, scale=32**-0.5)

    def inputs(lengths: list[int]) -> dict[str, Any]:
        return {
            "q": provider.from_numpy(made.queries(exam, 2, heads=4)),
            "metadata": provider.attention_metadata([1, 1], lengths, made.table, size),
        }

    graph = provider.capture(decode, inputs([64, 64]))
    for lengths in ([1, 64], [17, 3], [64, 33]):
        given = inputs(lengths)
        wanted = decode(**given)
        graph.update(given)
        got = graph.replay()
        provider.synchronize()
        exam.equal_bits(provider.to_numpy(got), provider.to_numpy(wanted), f"kv_lens {lengths}")


@case("graph", without=Feature.GRAPH)
def capture_is_refused(exam: Exam) -> None:
    """Without graphs, a capture is refused before the function is called.

    Kills a capture that runs the function and calls that a graph.
    """
    called: list[int] = []
    exam.refuses(
        CapabilityError,
        exam.provider.capture,
        lambda: called.append(1),
        {},
        says=("graph", exam.provider.name),
    )
    exam.check(not called, "the function was called.")
