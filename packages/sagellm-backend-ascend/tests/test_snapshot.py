"""The committed schemas are those of the installed torch_npu, where one is installed and starts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from sagellm_backend.ascend import startup

SNAPSHOT = Path(__file__).parent / "l0" / "npu_l0" / "schemas.txt"
LINES = [line for line in SNAPSHOT.read_text(encoding="utf-8").splitlines() if line[0] != "#"]


def test_every_line_is_a_schema_of_its_own():
    import torch

    schemas = [torch._C.parse_schema(line) for line in LINES]
    assert len({(item.name, item.overload_name) for item in schemas}) == len(LINES)
    assert {item.name.partition("::")[0] for item in schemas} == {"npu", "atb"}


@pytest.mark.skipif(not find_spec("torch_npu"), reason="torch_npu is not installed")
def test_they_are_what_torch_npu_has():
    startup.load()
    import torch

    for line in LINES:
        wanted = torch._C.parse_schema(line)
        namespace, _, name = wanted.name.partition("::")
        overloads = getattr(getattr(torch.ops, namespace), name)
        found = getattr(overloads, wanted.overload_name or "default")._schema
        assert str(found) == str(wanted)
