"""Cases of features that no provider here declares, on a provider made to declare them."""

import contextlib

import pytest

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import all_cases
from sagellm_backend.conformance.exam import CheckFailed, Exam
from sagellm_backend.dtypes import dtype_of
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.graphs import Graph
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.provider import ReferenceProvider

DECLARED = {Feature.GRAPH, Feature.HOST_REGISTER, Feature.STREAM_PRIORITY}


class ReplayedGraph(Graph):
    """Calls its function again for each replay, over static inputs and outputs."""

    stale = False
    forgotten = False

    def __init__(self, owner, function, inputs):
        self.owner, self.function, self.closed = owner, function, False
        self.inputs = {name: self._own(value) for name, value in inputs.items()}
        made = function(**self.inputs)
        self._outputs = made
        arrays = made if isinstance(made, tuple) else (made,)
        self._nbytes = sum(array.nbytes for array in arrays)
        self.ledger = owner._ledgers.of(owner.device)
        self.ledger.charge(0 if self.forgotten else self._nbytes, "graph")

    def _own(self, value):
        if not isinstance(value, DeviceArray):
            return value
        return self.owner.from_numpy(self.owner.to_numpy(value))

    @property
    def outputs(self):
        return self._outputs

    @property
    def nbytes(self):
        return self._nbytes

    def update(self, inputs):
        self._require_open()
        if not isinstance(inputs, dict):
            raise InvalidArgumentError("inputs must be a mapping.")
        for name, value in inputs.items():
            own = self.inputs.get(name)
            if own is None or type(own) is not type(value):
                raise InvalidArgumentError(f"{name} is no input of this graph.")
            if isinstance(own, DeviceArray) and (
                own.shape != value.shape or dtype_of(own) is not dtype_of(value)
            ):
                raise InvalidArgumentError(f"{name} does not fit.")
        if self.stale:
            return
        for name, value in inputs.items():
            if isinstance(value, DeviceArray):
                self.owner._write_back(self.inputs[name], self.owner.to_numpy(value))
            else:
                self.inputs[name] = value

    def replay(self):
        self._require_open()
        results = self.function(**self.inputs)
        outputs = self._outputs
        pairs = (
            zip(outputs, results, strict=True)
            if isinstance(results, tuple)
            else [(outputs, results)]
        )
        for output, result in pairs:
            self.owner._write_back(output, self.owner.to_numpy(result))
        return self._outputs

    def close(self):
        if not self.closed:
            self.closed = True
            self.ledger.release(0 if self.forgotten else self._nbytes, "graph")

    def _require_open(self):
        if self.closed:
            raise UnavailableError("This graph is closed.")


class Featured(ReferenceProvider):
    graph = ReplayedGraph

    def _features(self):
        return super()._features() | DECLARED

    def _capability(self):
        found = super()._capability()
        found.has_graph_exec = True
        found.features |= DECLARED
        return found

    def _capture(self, function, inputs):
        return self.graph(self, function, inputs)

    def _register_host_memory(self, array):
        return contextlib.nullcontext()


def run(provider_class, case, capability):
    exam = Exam(case, capability, provider_class)
    try:
        case.function(exam)
    finally:
        exam.close()


with Featured() as _provider:
    CAPABILITY = _provider.capability()
CASES = {case.id: case for case in all_cases(CAPABILITY)[0]}
WANTED = [name for name, case in CASES.items() if DECLARED & set(case.requires)]


def test_the_cases_are_planned():
    assert {name.partition("[")[0] for name in WANTED} >= {
        "core.host_registration",
        "graph.replay_equals_eager",
        "graph.metadata_can_be_updated",
    }


@pytest.mark.parametrize("name", WANTED)
def test_a_provider_that_keeps_its_claims_passes(name):
    run(Featured, CASES[name], CAPABILITY)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("stale", "graph.replay_reads_updated_inputs[fp32]"),
        ("stale", "graph.metadata_can_be_updated[bf16]"),
        ("stale", "graph.outputs_are_overwritten"),
        ("forgotten", "graph.graphs_are_counted"),
    ],
)
def test_faults_of_graphs_are_caught(fault, name):
    graph = type("FaultyGraph", (ReplayedGraph,), {fault: True})
    with pytest.raises(CheckFailed):
        run(type("Faulty", (Featured,), {"graph": graph}), CASES[name], CAPABILITY)


def test_every_feature_has_cases_of_claim_and_of_absence():
    cases = []
    for features in (frozenset(), frozenset({Feature.KV_POOL}), frozenset(Feature)):
        capability = Featured().capability()
        capability.features = features
        cases += all_cases(capability)[0]
    claimed = {feature for case in cases for feature in case.requires}
    refused = {case.without for case in cases if case.without}
    assert set(Feature) - claimed == set()
    assert set(Feature) - refused == set()
