"""Which chips are of which family."""

from __future__ import annotations

import pytest

from sagellm_backend import DType
from sagellm_backend.ascend.soc import FAMILIES, UNKNOWN, family_of, family_of_pci


@pytest.mark.parametrize(
    ("version", "name", "family"),
    [
        (100, "", "910"),
        (104, "Ascend910B", "910"),
        (200, "", "310P"),
        (205, "", "310P"),
        (220, "", "A2"),
        (225, "", "A2"),
        (240, "", "310B"),
        (250, "", "A3"),
        (256, "", "A3"),
        (260, "", "950"),
        (999, "", "unknown"),
        (999, "Ascend910B3", "A2"),
        (None, "Ascend910B4-1", "A2"),
        (None, "Ascend910_9391", "A3"),
        (None, "Ascend910ProB", "910"),
        (None, "Ascend310P3", "310P"),
        (None, "Ascend310B1", "310B"),
        (None, "Ascend950DT", "950"),
        (None, "", "unknown"),
    ],
)
def test_by_version_and_else_by_name(version, name, family):
    assert family_of(version, name).name == family


def test_versions_belong_to_one_family_each():
    versions = [version for family in FAMILIES for version in family.versions]
    assert len(set(versions)) == len(versions)


def test_bf16_is_there_where_torch_npu_says_so():
    for family in FAMILIES:
        for version in family.versions:
            assert (DType.BF16 in family.dtypes) == (version >= 220), version
    assert DType.BF16 not in UNKNOWN.dtypes


def test_by_pci_number():
    assert family_of_pci("0xd802").name == "A2"
    assert family_of_pci("0xd500").name == "310P"
    assert family_of_pci("") is family_of_pci("0x1234") is UNKNOWN
