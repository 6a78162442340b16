"""Graphs whose attention reads lengths on the host: captured, patched and replayed."""

from __future__ import annotations

import pytest
from decode_step import LENGTHS, Decode, replay_all
from examination import CHIPS, graph_findings, mutant

from sagellm_backend.ascend import attention, graphs, provider
from sagellm_backend.capability import Feature
from sagellm_backend.errors import InvalidArgumentError, UnavailableError


@pytest.mark.parametrize("chip", ["A2", "A3"])
def test_every_update_reaches_every_call(make, chip):
    replay_all(Decode(make(CHIPS[chip])))


@pytest.mark.parametrize(
    ("dtype", "options"), [("fp32", {}), ("fp16", {"window": 64}), ("fp16", {"softcap": 3.0})]
)
def test_what_plain_torch_computes_reads_its_lengths_on_the_device(make, dtype, options):
    step = Decode(make(), dtype, **options)
    graph = step.backend.capture(step, step.inputs((384, 384)))
    for lengths in LENGTHS:
        inputs = step.inputs(lengths)
        graph.update(inputs)
        step.check(graph, inputs)


def test_graphs_are_patched_in_turn_and_on_other_streams(make):
    backend = make()
    steps = [Decode(backend) for _ in range(2)]
    graphs = [backend.capture(step, step.inputs((384, 384))) for step in steps]
    streams = [backend.create_stream() for _ in range(2)]
    for turn, lengths in enumerate(LENGTHS):
        step, graph = steps[turn % 2], graphs[turn % 2]
        inputs = step.inputs(lengths)
        backend.synchronize()
        with streams[turn // 2 % 2]:
            graph.update(inputs)
            step.check(graph, inputs)


def test_a_call_outside_of_the_inputs_keeps_its_lengths(make):
    step = Decode(make())
    fixed = step.inputs((200, 20))["metadata"]
    inputs = {"q": step.inputs((1, 1))["q"]}
    graph = step.backend.capture(lambda q: step(q, fixed), inputs)
    for _ in range(2):
        graph.update({"q": step.inputs((1, 1))["q"]})
        step.check(graph, {**graph._inputs, "metadata": fixed})


def test_one_of_two_steps_is_patched(make):
    step = Decode(make())

    def both(q, first, second):
        return step(step(q, first), second)

    def inputs(one, two):
        made = step.inputs(one)
        return {"q": made["q"], "first": made["metadata"], "second": step.inputs(two)["metadata"]}

    start = inputs((300, 3), (9, 384))
    graph = step.backend.capture(both, start)
    new = inputs((17, 200), (1, 1))
    del new["second"]
    graph.update(new)
    wanted = both(**new, second=step.inputs((9, 384))["metadata"])
    got = graph.replay()
    step.backend.synchronize()
    assert step.backend.to_numpy(got).tobytes() == step.backend.to_numpy(wanted).tobytes()


def test_more_blocks_than_the_operator_takes_are_refused_and_nothing_is_changed(make):
    step = Decode(make())
    table = [[0, 1, 2, 3]] * 2
    start = step.inputs((384, 384), table)
    graph = step.backend.capture(step, start)
    with pytest.raises(InvalidArgumentError, match=r"metadata does not fit.*7 blocks.*up to 6"):
        graph.update(step.inputs((500, 384), table))
    step.check(graph, start)


def test_an_update_that_fails_on_its_way_leaves_a_graph_that_says_so(make, machine):
    step = Decode(make())
    graph = step.backend.capture(step, step.inputs((384, 384)))
    begin = machine.npu.graph_task_update_begin
    calls = []

    def fail(stream, handle):
        calls.append(handle)
        if len(calls) == 2:
            raise RuntimeError("NPU function error: aclmdlRICaptureTaskUpdateBegin")
        begin(stream, handle)

    machine.npu.graph_task_update_begin = fail
    inputs = step.inputs((9, 10))
    with pytest.raises(UnavailableError, match="update of a graph failed"):
        graph.update(inputs)
    with pytest.raises(UnavailableError, match="failed on its way"):
        graph.replay()
    machine.npu.graph_task_update_begin = begin
    graph.update(inputs)
    step.check(graph, inputs)


def test_a_closed_graph_holds_nothing(make):
    step = Decode(make())
    graph = step.backend.capture(step, step.inputs((384, 384)))
    assert len(graph._tasks._tasks) == 2
    assert len(graph._tasks.workspaces) == 1
    graph.close()
    assert not graph._tasks._tasks
    assert not graph._tasks.workspaces
    with pytest.raises(UnavailableError, match="closed"):
        graph.replay()


@pytest.mark.parametrize("chip", CHIPS)
def test_families_whose_captured_calls_cannot_be_told_offer_no_graphs(make, chip):
    features = make(CHIPS[chip]).capability().features
    assert (Feature.GRAPH in features) == (chip in ("A2", "A3"))


RECORDING = "found if found is not None and npu.is_current_stream_capturing() else None"
MISTAKES = [
    (graphs, "task.launch(lengths)", "task.launch(lengths_of(captured))", "AssertionError"),
    (graphs, "self._tasks.patch(", "print(", "AssertionError"),
    (graphs, "task.event.record(self._updates)", "pass", "waits for ever"),
    (graphs, "event.wait(stream)\n        event.reset", "event.reset", "before anything"),
    (graphs, "event.reset(stream)", "pass", "recorded again"),
    (graphs, "self._updates.wait_event(self._replayed)", "pass", "beside a replay"),
    (graphs, "self._tasks.replayed()", "pass", "beside a replay"),
    (graphs, "with self._module.stream(self._updates):", "if True:", "another stream"),
    (
        graphs,
        "tasks = [task for task in self._tasks if",
        "tasks = [task for task in self._tasks[:1] if",
        "AssertionError",
    ),
    (graphs, RECORDING, "found", "no capture"),
    (graphs, RECORDING, "None", "AssertionError"),
    (attention, "workspace=space, ", "", "no workspace"),
    (
        attention,
        "out = [torch.empty_like(query), ",
        "out = [torch.empty_like(query)[..., :64], ",
        "not like query",
    ),
    (attention, "torch.empty(1, dtype=query.dtype, device=query.device)", "query", "lse"),
    (attention, "actual_seq_lengths_kv=lengths.kv,", "actual_seq_lengths_kv=lengths.cu_kv,", ""),
    (
        attention,
        "**call, actual_seq_lengths_kv=lengths.kv",
        "**call, actual_seq_kvlen=lengths.kv",
        "",
    ),
]


@pytest.mark.parametrize(("module", "old", "new", "said"), MISTAKES)
def test_a_mistake_is_caught(make, monkeypatch, module, old, new, said):
    if module is graphs:
        made = mutant(graphs, (old, new))
        monkeypatch.setattr(attention, "graphs", made)
        monkeypatch.setattr(provider, "AscendGraph", made.AscendGraph)
    else:
        made = mutant(attention, (old, new))
        monkeypatch.setattr(provider, "attention", made)
    (found,) = graph_findings(make())
    assert not found.passed
    assert any(part in found.detail for part in said.split("|")), found.detail
