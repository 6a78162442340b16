"""The families of Ascend chips, and what each can do.

Numbers are those of ``torch.npu.get_soc_version()`` (torch_npu 2.13, csrc/core/npu/NpuVariables.h),
by which a provider goes. Those of the PCI bus serve the probe alone, and a card that has none of them
is served all the same. This file imports no framework.
"""

from __future__ import annotations

from dataclasses import dataclass

from sagellm_backend.dtypes import DType

BLOCK_SIZE = 128
"""The tokens per KV block for which the vendor's paged attention is made."""

PCI_VENDOR = "0x19e5"

_HALF = (DType.FP32, DType.FP16)
_ALL = (DType.FP32, DType.FP16, DType.BF16)


@dataclass(frozen=True)
class Family:
    """Chips that take the same operators.

    ``fused`` are the operations of our table for which the vendor documents an operator on this
    family; all others run in plain torch. ``nz`` says that weights and the caches of paged
    attention are in the order FRACTAL_NZ there, caches as (blocks, heads * size / 16, tokens, 16),
    and ``graphs`` that captured calls can be told other lengths. ``reduces`` are the dtypes that
    HCCL reduces there (HcclAllReduce, CANN 8.5); without any there is no HCCL.
    """

    name: str
    dtypes: tuple[DType, ...]
    versions: range = range(0)
    names: tuple[str, ...] = ()
    pci: str = ""
    fused: frozenset[str] = frozenset()
    nz: bool = False
    graphs: bool = False
    reduces: frozenset[DType] = frozenset()


_A2_OPERATORS = frozenset(
    {"rms_norm", "add_rms_norm", "silu_and_mul", "rope", "kv_write", "attention"}
)

_REDUCES = frozenset({DType.FP32, DType.FP16, DType.INT32, DType.INT8})

FAMILIES = (
    Family(
        "A3",
        _ALL,
        range(250, 257),
        ("Ascend910_93",),
        pci="0xd803",
        fused=_A2_OPERATORS,
        graphs=True,
        reduces=_REDUCES | {DType.BF16, DType.INT64},
    ),
    Family(
        "A2",
        _ALL,
        range(220, 226),
        ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4"),
        pci="0xd802",
        fused=_A2_OPERATORS,
        graphs=True,
        reduces=_REDUCES | {DType.BF16, DType.INT64},
    ),
    Family(
        "310P",
        _HALF,
        range(200, 206),
        ("Ascend310P",),
        pci="0xd500",
        fused=frozenset({"rms_norm", "add_rms_norm", "silu_and_mul", "attention", "linear"}),
        nz=True,
        reduces=_REDUCES,
    ),
    Family(
        "910",
        _HALF,
        range(100, 105),
        ("Ascend910",),
        pci="0xd801",
        reduces=_REDUCES | {DType.INT64},
    ),
    Family("310B", _ALL, range(240, 244), ("Ascend310B",)),
    Family(
        "950", _ALL, range(260, 261), ("Ascend950",), reduces=_REDUCES | {DType.BF16, DType.INT64}
    ),
)
"""Families by name; where one name begins like another, the longer one comes first."""

UNKNOWN = Family("unknown", _HALF, reduces=_REDUCES)
"""A chip of no known family: every operation in plain torch, and no bf16."""


def family_of(version: int | None, name: str = "") -> Family:
    """The family of a SoC version, else of a device name, else :data:`UNKNOWN`."""
    for family in FAMILIES:
        if version is not None and version in family.versions:
            return family
    return next((family for family in FAMILIES if name.startswith(family.names)), UNKNOWN)


def family_of_pci(device: str) -> Family:
    """The family of a PCI device number such as ``0xd802``, else :data:`UNKNOWN`."""
    return next((family for family in FAMILIES if device and family.pci == device), UNKNOWN)
