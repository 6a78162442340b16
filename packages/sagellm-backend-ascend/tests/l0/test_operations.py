"""Every operation, in every dtype, through the vendor's schemas, against the float64 reference."""

from __future__ import annotations

import pytest
from examination import CHIPS, attention_findings, operation_findings

from sagellm_backend import DType
from sagellm_backend.ops import OPERATIONS


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("version", [CHIPS["A2"], CHIPS["310P"], CHIPS["910"]])
def test_an_operation_of_the_table(make, version, name):
    backend = make(version)
    found = operation_findings(backend, [name])
    assert [item for item in found if not item.passed] == []
    assert {item.dtype for item in found if not item.refused} == {
        dtype.value for dtype in backend.compute_dtypes
    }


@pytest.mark.parametrize("version", CHIPS.values(), ids=CHIPS)
def test_attention_in_the_shapes_that_the_vendor_serves(make, version):
    backend = make(version)
    found = attention_findings(backend)
    assert [item for item in found if not item.passed] == []
    assert len(found) == 11 * len(backend.compute_dtypes)


def test_a_chip_without_bf16_refuses_it_by_name(make):
    backend = make(CHIPS["310P"])
    for name in OPERATIONS:
        reasons = backend.kernels.supports(name, dtype="bf16")
        assert reasons, name
        assert "bf16 is not computed in" in reasons[0]
    assert DType.BF16 not in backend.capability().kv.dtypes
