"""Reference provider: what it claims is what it does, for every operation."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.operations import cases, examine_operations
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.ops import OPERATIONS
from sagellm_backend.ops.args import FLOATING
from sagellm_backend.reference.provider import create_reference_backend
from sagellm_backend.reference.spec import SPEC


@pytest.fixture
def backend():
    with create_reference_backend() as made:
        yield made


@pytest.mark.parametrize("seed", [0, 20250117])
def test_every_operation_conforms(backend, seed):
    findings = examine_operations(backend, seed=seed)
    assert {finding.operation for finding in findings} == set(OPERATIONS)
    assert not [finding for finding in findings if finding.refused or not finding.passed]
    backend.synchronize()


@pytest.mark.parametrize("name", OPERATIONS)
def test_empty_outputs_are_of_the_form_that_the_work_fills(backend, name):
    """An output is allocated before the work: its shape and dtype must be the reference's own."""
    operation = OPERATIONS[name]
    for case in cases(operation, DType.BF16, 3):
        arguments = operation.bind((), case)
        wanted = operation.run_reference(arguments, DType.BF16)
        native = {
            key: backend.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in arguments.items()
        }
        result = backend.get_kernel(name)(**native)
        outputs = result if isinstance(result, tuple) else () if result is None else (result,)
        written = [*outputs, *(native[key] for key in operation.mutates)]
        assert [(item.shape, item.dtype) for item in written] == [
            (item.shape, item.dtype) for item in wanted
        ]
        for array, values in zip(written, wanted, strict=True):
            assert backend.to_numpy(array).tobytes() == values.tobytes()


def test_reference_only_goes_through_the_host(backend):
    with create_reference_backend({"reference_only": True}) as other:
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        results = [
            made.to_numpy(made.get_kernel("softmax")(made.from_numpy(x)))
            for made in (backend, other)
        ]
        assert results[0].tobytes() == results[1].tobytes()
        assert other.kernels.fallback_counts() == {"softmax": 1}


def test_overflow_rounds_to_infinity_without_a_warning(backend):
    big = backend.from_numpy(np.full((1, 4), 6e4, np.float16))
    product = backend.get_kernel("linear")(big, big)
    assert np.isinf(backend.to_numpy(product)).all()


def test_capability_is_true_and_the_callers_own(backend):
    claims = backend.capability()
    assert claims.operations == dict.fromkeys(OPERATIONS, FLOATING)
    assert claims.peer_access == {(0, 1), (1, 0)}
    assert [device.index for device in claims.devices] == [0, 1]
    assert claims.versions["numpy"] == np.__version__
    assert DType.INT4 not in claims.supported_dtypes
    for dtype in claims.supported_dtypes:
        assert backend.empty(2, dtype).shape == (2,)
    claims.operations.clear()
    assert backend.capability().operations
    held = backend.empty(1000, "int8")
    free = backend.capability().available_memory_bytes
    assert free == claims.total_memory_bytes - held.nbytes


@pytest.mark.parametrize("feature", [Feature.GRAPH, Feature.COLLECTIVE])
def test_absence_is_typed(backend, feature):
    ask = {
        Feature.GRAPH: lambda: backend.capture(lambda: None, {}),
        Feature.COLLECTIVE: backend.communicator,
    }
    with pytest.raises(CapabilityError) as error:
        ask[feature]()
    assert error.value.feature == feature
    assert not backend.capability().supports_feature(feature)


def test_alone_collectives_are_the_identity(backend):
    array = backend.from_numpy(np.arange(3, dtype=np.float32))
    backend.all_reduce(array, "max")
    assert backend.to_numpy(array).tolist() == [0, 1, 2]
    assert backend.to_numpy(backend.all_gather(array)).tolist() == [[0, 1, 2]]


def test_default_device_is_chosen_by_config():
    with create_reference_backend({"device": 1}) as backend:
        assert backend.empty(1, "fp32").device == backend.create_stream().device == "reference:1"
    with pytest.raises(InvalidArgumentError, match="Device 2"):
        create_reference_backend({"device": 2})


def test_the_spec_builds_it():
    with SPEC({"memory_limit": 4096}) as backend:
        assert (backend.name, backend.device_type) == (SPEC.name, SPEC.device_type)
        assert backend.array_framework == SPEC.array_framework
        assert backend.memory_stats()["limit_bytes"] == 4096
